"""FastAPI around `generate`, as people write it: python serve_wrapper.py FOLDER PORT THREADS LOCK.

One model in one process; FastAPI runs a plain function in one of its threads. LOCK 1: one answer at a time.
"""

from __future__ import annotations

import sys
import threading
from contextlib import nullcontext
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, port, threads, locked = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
alone = threading.Lock() if locked else nullcontext()
app = FastAPI()


class Request(BaseModel):
    prompt: str
    max_tokens: int = 16
    temperature: float = 1.0


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/v1/completions")
def complete(request: Request) -> dict[str, Any]:
    inputs = tokenizer(request.prompt, return_tensors="pt")
    sampling = (
        {"do_sample": True, "temperature": request.temperature}
        if request.temperature
        else {"do_sample": False}
    )
    with alone, torch.inference_mode():
        out = model.generate(
            **inputs, max_new_tokens=request.max_tokens, pad_token_id=tokenizer.eos_token_id, **sampling
        )
    size = inputs["input_ids"].shape[1]
    text = tokenizer.decode(out[0, size:], skip_special_tokens=True)
    usage = {"prompt_tokens": size, "completion_tokens": out.shape[1] - size, "total_tokens": out.shape[1]}
    return {"choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "usage": usage}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
