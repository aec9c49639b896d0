"""Environment variables that echox reads, for `echox-info variables` and the page of recipes."""

from __future__ import annotations

# Those of echox itself; each is unset by default.
OWN_VARIABLES = {
    "ECHOX_CACHE": "Folder of what can be downloaded or computed again: assets, answers of "
    "--help and completion, measured costs of steps; ~/.cache/echox where it is unset.",
    "ECHOX_ASSETS": "Folder of asset folders by name, provided by hand; preferred to fetched ones.",
    "ECHOX_ASSET_SOURCE": "The only source of assets: hub or packages; unset asks the hub first, "
    "and takes packages where it cannot be reached.",
    "ECHOX_PLUGINS": "Folders of plugins beside ./plugins, separated as in PATH; their code is "
    "run.",
    "ECHOX_RECIPES": "Folders of recipes and presets that come before ./recipes, separated as in "
    "PATH.",
    "ECHOX_CPU_PRECISION": "How new runs multiply on a CPU: fp32 or bf16; unset measures which is "
    "faster.",
    "ECHOX_API_KEY": "Key that clients of `echox-serve` send, where its config names none; its "
    "value is not shown.",
    "ECHOX_DATA": "Folder of the data sets that recipe echo_3b names; ./data where it is unset.",
    "ECHOX_GOLDEN": "Folder of values of the authors' own code that tests/golden compares with.",
}
# Those of other programs that echox reads, sets, or asks to be set.
OTHER_VARIABLES = {
    "HF_HUB_OFFLINE": "1 uses only what is in the cache of the Hugging Face hub.",
    "OMP_NUM_THREADS": "Threads of a process on a CPU, where cpu_threads of a recipe is null.",
    "OMP_WAIT_POLICY": "How threads wait for each other; set, the next two are left alone.",
    "GOMP_SPINCOUNT": "How long a waiting thread of GNU's OpenMP spins; every command sets 2000.",
    "KMP_BLOCKTIME": "The same for LLVM's OpenMP, in milliseconds; every command sets 1.",
    "RANK": "Number of the process among those of torchrun, which sets it.",
    "LOCAL_RANK": "Number of the process, and of its GPU, on its machine; set by torchrun.",
    "WORLD_SIZE": "Number of processes that train together; set by torchrun.",
    "TORCH_CPP_LOG_LEVEL": "How much PyTorch's C++ code logs; ERROR where ranks share a CPU.",
    "CXX": "C++ compiler of what torch.compile generates, as `echox-bench loss` measures it.",
    "TRITON_INTERPRET": "1 runs the kernels in Triton's interpreter, to try them without a GPU.",
}
