"""What stands behind the losses. Each module imports only those after it in this list:

functions    losses as functions
describe     signatures and documentation of both, with shared options written out
routes       which way a call takes: kernels, operators, reference; eager autograd
dtensor      a call on the parts of a DTensor
operators    the registered operators, and their twins for torch.func
steps        statistics, head and gradient, of one process or over ranks
counts       exact counts of hard predictions
checks       what a call may be given
transfer     numbers of the host on their way to a device
engines      the kernels of a device: tensors become addresses, sizes and strides
plan         a loss, ready for kernels and reference
terms        losses times coefficients, as compounds hold them
spec         a loss as data
calls        what native calls take
options      the options that losses share
native       the native modules
"""
