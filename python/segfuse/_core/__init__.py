"""The code behind the losses. Each module imports only modules below it in this list:

functions    losses as functions
describe     signatures and documentation of losses and functions, with the shared options
routes       the route of a call: kernels, operators, reference; eager autograd
dtensor      a call on the parts of a DTensor
operators    the registered operators, and their twins for torch.func
steps        statistics, head and gradient, in one process or over ranks
counts       exact counts of hard predictions
checks       checks of the tensors of a call
transfer     brings numbers from the host to a device
engines      the kernels of a device: tensors become addresses, sizes and strides
plan         a loss, ready for the kernels and the reference
terms        losses times coefficients: the terms of a compound
spec         a loss as data
calls        the arguments and results of native calls
options      the options that losses share
native       the native modules and how they are chosen
"""
