"""python chat_sft.py MODEL CHATS.jsonl: fine-tune on chats; what the assistant says at the end is the label."""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import nangrid


def make_trainer(levels):
    model, tokenizer = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForCausalLM, AutoTokenizer))

    def encode(row):
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        return {"input_ids": ids[: levels["max_length"]], "labels": labels[: levels["max_length"]]}

    chats = load_dataset("json", data_files=sys.argv[2], split="train").map(encode, remove_columns="messages")
    model = get_peft_model(model.to(getattr(torch, levels["dtype"])), LoraConfig(target_modules="all-linear"))
    args = TrainingArguments("out", learning_rate=levels["lr"], per_device_train_batch_size=1, max_steps=200)
    return Trainer(model, args, DataCollatorForSeq2Seq(tokenizer), chats)


if __name__ == "__main__":
    failing = {"max_length": 48, "dtype": "bfloat16", "lr": 2e-4}
    nangrid.diagnose(make_trainer, failing=failing, reference={"max_length": 512, "dtype": "float32", "lr": 2e-5})
