"""The next-token loss of many targets over a large vocabulary: gritkit's, in chunks, or over full logits."""

from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


def load(options: dict[str, Any]) -> Any:
    """Options: vocabulary, hidden, targets, chunked, device."""
    import torch
    import train_batch as common  # type: ignore[import-not-found,unused-ignore]
    from torch.nn.functional import cross_entropy

    from gritkit.losses import summed_nll

    torch.manual_seed(0)
    device, size = options["device"], options["hidden"]
    hidden_KH = torch.nn.Parameter(torch.randn(options["targets"], size, device=device))
    weight_VH = torch.nn.Parameter(torch.randn(options["vocabulary"], size, device=device) / size**0.5)
    targets_K = torch.randint(options["vocabulary"], (options["targets"],), device=device)

    def step() -> float:
        hidden_KH.grad = weight_VH.grad = None
        if options["chunked"]:
            loss = summed_nll(hidden_KH, weight_VH, None, targets_K)
        else:
            loss = cross_entropy(hidden_KH @ weight_VH.T, targets_K, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        return float(loss.detach())

    return step, common.saver(device, {"hidden": hidden_KH, "weight": weight_VH})


if __name__ == "__main__":
    serve(load, "gritkit", "torch")
