"""Engine: the training loop, one duty a file.

    trainer       one stage from start, or from where it stopped, to its final checkpoint: `train`
    step          one optimiser step: micro-batches in, one update out
    validation    loss and scores on the validation split
    config        every setting of the loop, with its default
    optimisation  AdamW and the learning rate
    precision     whether forward passes run in bfloat16
    batching      which examples make which batch, resumable from two integers
    randomness    random state: seeded, captured, restored
    checkpoint    folders that are whole or not there
    lineage       what a checkpoint was made from
    metrics       metrics.jsonl and TensorBoard
    progress      what a person sees
    interruption  SIGTERM and Ctrl-C
    own_process   a step of a recipe in a process of its own
    distribution  the processes that train together
    disk          a full disk, said in a sentence
"""
