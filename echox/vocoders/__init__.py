"""Vocoders: networks that turn frames into samples, and the parts of their training.

hifigan         the generator of HiFi-GAN, and its receptive field
unit_generator  units and speakers in place of mels, with the duration predictor
layout          the two files that unit vocoders are published as, read and written
discriminators  multi-period and multi-scale discriminators
mel             log mel spectrograms
"""
