"""Engine: the training loop, one duty a module.

trainer       one stage from its first step, or from its last checkpoint, to its final one: `train`
setup         model, data, optimizer and validation of a stage, built before its first step
step          one optimizer step: micro-batches in, one update out
validation    loss and scores on the validation split
config        every setting of the loop, with its default
optimisation  AdamW and the learning rate
precision     whether forward passes run in bfloat16
batching      which examples form which batch, resumable from two integers
randomness    random state: seeded, captured, restored
lineage       parents, data and versions a checkpoint was trained with
metrics       metrics.jsonl and TensorBoard
interruption  SIGTERM and Ctrl-C
own_process   a step of a recipe in a process of its own
distribution  the processes that train together
audit         the label audit before the first step, in audit_checks, audit_trial and audit_page
"""
