"""A machine that runs what Triton compiles for a GPU, where there is none: PTX for sm_80 to sm_90, slowly.

`launch.machine` lets every Triton body of the library run on it. Beside the values it watches what the interpreter of
Triton's language cannot know, and raises a `Fault` where

- an address lies outside of all tensors or of shared memory, or is not aligned;
- a warp reads or overwrites what another one wrote or reads, and no barrier is between;
- a program touches what another one writes;
- a copy or a product that runs beside the threads is used before, or its factors change before, it is waited for;
- a product reads shared memory that was not fenced for it, or threads meet a barrier one by one.

What it does not know: time, the order in which warps run, and instructions that no kernel of ours has needed yet, which
it names.
"""
