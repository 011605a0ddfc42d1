"""A loop over an engine of DeepSpeed; the two lines with `watch` were added."""

import deepspeed
from torch import nn

from nangrid import Watch


def train(model, dataset, configuration):
    engine, optimizer, loader, _ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), training_data=dataset, config=configuration
    )
    watch = Watch(engine, optimizer, out_dir="autopsy")
    for inputs, targets in watch.batches(loader):
        loss = nn.functional.mse_loss(engine(inputs).log(), targets)
        engine.backward(loss)
        engine.step()
