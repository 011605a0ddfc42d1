"""python classifier.py MODEL TEXTS.jsonl: a classifier that standardises what it reads, over the batch."""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

import nangrid


class Classifier(torch.nn.Module):
    def __init__(self, path):
        super().__init__()
        self.body = AutoModel.from_pretrained(path, dtype=torch.float32)
        self.head = torch.nn.Linear(self.body.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask, labels):
        pooled = self.body(input_ids, attention_mask).last_hidden_state.mean(1)
        logits = self.head((pooled - pooled.mean(0)) / pooled.std(0))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def make_trainer(levels):
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    texts = load_dataset("json", data_files=sys.argv[2], split="train")
    texts = texts.map(lambda row: tokenizer(row["text"], truncation=True, max_length=64), remove_columns="text")
    args = TrainingArguments("out", report_to="none", **levels)
    return Trainer(Classifier(sys.argv[1]), args, train_dataset=texts, processing_class=tokenizer)


if __name__ == "__main__":
    failing = {"per_device_train_batch_size": 8, "dataloader_drop_last": False, "learning_rate": 3e-4}
    reference = {"per_device_train_batch_size": 16, "dataloader_drop_last": True, "learning_rate": 1e-4}
    nangrid.diagnose(make_trainer, failing=failing, reference=reference, horizon=40, out="outputs/classifier")
