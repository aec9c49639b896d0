"""Vocoders: nets that turn frames into samples, and what they are trained and judged with.

    hifigan         the generator of HiFi-GAN, and how far its samples see
    unit_generator  units and speakers in place of mels, with the duration predictor
    layout          the two files that unit vocoders are published as, read and written
    discriminators  what tells made speech from real
    mel             log mel spectrograms
"""
