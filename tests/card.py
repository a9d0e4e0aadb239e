"""A card that is pretended: its tensors say `cuda:0` and have their numbers on the CPU. It refuses what a GPU would,
such as tensors of two devices in one operation, and counts how often the host waits for a number. Or it is the
GPU of an Apple, `mps:0`, which has no double precision"""
import collections
import contextlib
import sys
from functools import cache
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, get_default_nowrap_functions
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

HERE = torch.device('cuda', 0) # `card` sets it
waited = collections.Counter() # by the line of the library that asked


class OnCard(Tensor):
    "A tensor on the card; PyTorch itself takes it for one of the device meta"
    __torch_function__ = torch._C._disabled_torch_function_impl
    kind = Tensor # what it is anywhere
    device = property(lambda _: HERE)
    is_cuda,is_mps,is_cpu,is_meta = (property(lambda _, k=k: HERE.type == k) for k in ('cuda', 'mps', 'cpu', 'meta'))

    @staticmethod
    def __new__(cls, there):
        shape = torch.empty_strided(there.shape, there.stride(), dtype=there.dtype, device='meta')
        res = Tensor._make_subclass(cls, shape, there.requires_grad, device_for_backend_keys=torch.device('cpu'))
        res.there = there # the numbers
        return res

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None): return act(f, args, kwargs or {})
    def __repr__(self, **_): return f'OnCard({self.there})'
    def __reduce_ex__(self, protocol):
        o = self.there.detach()
        o = nn.Parameter(o, self.requires_grad) if getattr(self, '_is_param', False) else o.as_subclass(self.kind)
        return o.__reduce_ex__(protocol)
    def set_meta(self, o, as_copy=False): vars(self).update({k:v for k,v in vars(o).items() if k != 'there'})
    def tolist(self): return self.cpu().tolist()
    def numpy(self, **_): raise TypeError(f"can't convert {HERE} device type tensor to numpy. Use Tensor.cpu() first")


class Back(nn.Parameter):
    "A parameter that has been on the card: PyTorch remembers that its operations are Python's"
    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None): return act(f, args, kwargs or {})
    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), nn.Parameter(self.there.detach().clone(), self.requires_grad))


@cache
def on_card(cls):
    "The class of a tensor of `cls`, such as one of fastai's, on the card"
    if cls in (Tensor, nn.Parameter): return OnCard
    same = dict(kind=cls, __reduce_ex__=OnCard.__reduce_ex__, __repr__=OnCard.__repr__)
    return type(cls)(cls.__name__, (cls, Keeping, OnCard), same)


class Keeping:
    "What an operation gives has the class of what it was done to"
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass(): res = f(*args, **(kwargs or {}))
        if f in get_default_nowrap_functions(): return res
        return tree_map_only(Tensor, lambda o: o.as_subclass(cls), res)


def as_subclass(o, cls, there=Tensor.as_subclass):
    cls = getattr(cls, 'kind', cls)
    if not isinstance(o, OnCard): return there(o, cls)
    if type(o) is on_card(cls): return o
    with torch._C.DisableTorchFunctionSubclass(): res = o.view_as(o)
    res.__class__ = on_card(cls)
    return res


class Acting(TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None): return act(f, args, kwargs or {})


def is_card(o): return isinstance(o, (str, torch.device)) and torch.device(o).type in (HERE.type, 'meta')


MOVES = 'copy_', '_to_copy'
PLACES = 'index', 'index_put', 'index_put_', '_index_put_impl_' # a tensor on the card takes indices of the host
WAITS = '_local_scalar_dense', 'nonzero', 'equal', 'is_nonzero', '_unique2', 'unique_dim', 'masked_select'


def check(name, args, ts):
    apart = [o for o in ts if not isinstance(o, OnCard) and (o.ndim or name in ('cat', 'stack'))]
    if not apart or name in MOVES or name in PLACES and isinstance(args[0], OnCard): return
    raise RuntimeError('Expected all tensors to be on the same device, but found at least two devices, '
                       f'{HERE} and cpu! ({name})')


def act(f, args, kwargs):
    "An operation of PyTorch's, computed by the CPU"
    name = f.__name__.split('.')[0]
    ts = [o for o in tree_leaves((args, kwargs)) if isinstance(o, Tensor)]
    cards = [o for o in ts if isinstance(o, OnCard)]
    to = kwargs.get('device')
    is_here = bool(cards) if to is None else is_card(to)
    if cards: check(name, args, ts)
    if is_here and kwargs.get('generator'):
        raise RuntimeError(f"Expected a '{HERE.type}' device type for generator but found 'cpu'")
    if cards and (name in WAITS or not is_here or name == 'copy_' and not isinstance(args[0], OnCard)): note()
    if is_here and to is not None: kwargs = {**kwargs, 'device':'cpu'}
    known = {id(o.there):o for o in ts if isinstance(o, (OnCard, Back))}
    args,kwargs,given = *tree_map_only((OnCard, Back), lambda o: o.there, (args, kwargs)),(args, kwargs)
    out = f(*args, **kwargs)
    if is_here and HERE.type == 'mps' and any(getattr(o, 'dtype', None) == torch.float64 for o in tree_leaves(out)):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    if name.endswith('_') and cards and cards[0].there.shape != cards[0].shape: # such as `transpose_`
        with no_dispatch(): f(*given[0], **given[1])
    def back(o): return known[id(o)] if id(o) in known else OnCard(o) if is_here and type(o) is Tensor else o
    return tree_map_only(Tensor, back, out)


def note():
    frame = sys._getframe()
    while frame and '/charrnn_fa/' not in frame.f_code.co_filename: frame = frame.f_back
    if frame: waited[f"{frame.f_code.co_filename.rpartition('/charrnn_fa/')[2]}:{frame.f_lineno}"] += 1


# What does not come by there

IN_16_BITS = F.linear,torch.matmul,torch.bmm,torch.mm,torch.lstm,torch.gru,Tensor.matmul,Tensor.__matmul__


LAYERS = torch.lstm,torch.gru,torch.rnn_tanh,torch.rnn_relu # of cuDNN


def trains(args):
    "Whether a layer of cuDNN is called in training mode"
    return args[next(i for i,o in enumerate(args) if isinstance(o, list))+4]


def no_way_back(_): raise RuntimeError('cudnn RNN backward can only be called in training mode')


class Autocast(TorchFunctionMode):
    def __torch_function__(self, f, types, args=(), kwargs=None):
        def low(o): return o.to(torch.get_autocast_dtype(HERE.type)) if o.dtype == torch.float32 else o
        is_low = f in IN_16_BITS and torch.is_autocast_enabled(HERE.type)
        if is_low and any(isinstance(o, OnCard) for o in tree_leaves(args)):
            args = tree_map_only(Tensor, low, args)
        res = f(*args, **(kwargs or {}))
        if f in LAYERS and isinstance(args[0], OnCard) and torch.backends.cudnn.enabled and not trains(args):
            for o in tree_leaves(res):
                if o.requires_grad: o.register_hook(no_way_back)
        return res


def numbered(f):
    "PyTorch would ask a driver which card 'cuda' is"
    def g(*args, **kwargs):
        args,kwargs = [HERE if is_card(o) else o for o in args],{k:HERE if is_card(o) else o for k,o in kwargs.items()}
        return f(*args, **kwargs)
    return g


def stays(o, *args, **kwargs):
    "Whether `o.to(…)` is `o`"
    asked = [*args, *kwargs.values()]
    others = [v for v in asked if not is_card(v)]
    return isinstance(o, OnCard) and len(others) < len(asked) and all(v in (None, False, o.dtype) for v in others)


def load(f, map_location=None, there=torch.load, **kwargs):
    "`torch.load`; what is no tree of tensors, such as a Learner, stays on the CPU"
    res = there(f, map_location='cpu', **kwargs)
    return tree_map_only(Tensor, lambda o: o.to(HERE), res) if is_card(map_location) else res


def move(p, f):
    "`p.data = f(p.data)`, which leaves `p` the same parameter"
    new,grad = f(p.data),None if p.grad is None else f(p.grad)
    p.grad,p.data = None,new
    if isinstance(new, OnCard): p.__class__,p.there,p._is_param = OnCard,new.there,True
    elif isinstance(p, (OnCard, Back)): p.__class__,p.there = Back,new
    p.grad = grad


def apply(self, f, recurse=True):
    "`nn.Module._apply`"
    with torch.no_grad():
        for p in self.parameters(): move(p, f)
    for m in self.modules():
        m._buffers.update({k:b if b is None else f(b) for k,b in m._buffers.items()})
        if isinstance(m, nn.RNNBase): m._init_flat_weights()
    return self


of_t4 = SimpleNamespace(name='Tesla T4', total_memory=15*2**30, major=7, minor=5, multi_processor_count=40)


def said_of_cuda(capability, rng):
    return dict(is_available=True, _lazy_init=None, is_initialized=True, device_count=1, current_device='cuda:0',
                synchronize=None, get_device_capability=capability, get_device_name='Tesla T4', get_rng_state=rng,
                get_rng_state_all=[rng], get_device_properties=of_t4, is_bf16_supported=True, # if only emulated
                **dict.fromkeys('set_rng_state set_rng_state_all manual_seed manual_seed_all'.split()))


@contextlib.contextmanager
def card(capability=(7, 5), kind='cuda'):
    "A T4 is here for a while, or with another `kind` the GPU of an Apple"
    to = Tensor.to
    said = {torch.cuda:said_of_cuda(capability, torch.Generator('cpu').get_state())} if kind == 'cuda' else {
        torch.backends.mps:dict(is_available=True), torch.mps:dict(synchronize=None)}
    said[torch.accelerator] = dict(current_stream=SimpleNamespace(is_capturing=lambda: False)) # no graph of a card's calls
    with contextlib.ExitStack() as stack:
        def put(o, k, v): stack.enter_context(mock.patch.object(o, k, v))
        for o,vs in said.items():
            for k,v in vs.items(): put(o, k, lambda *_, v=v, **__: v)
        put(sys.modules[__name__], 'HERE', torch.device(kind, 0))
        put(torch.backends.cudnn, 'is_acceptable', lambda _: False)
        put(Tensor, 'to', lambda o, *args, **kw: o if stays(o, *args, **kw) else numbered(to)(o, *args, **kw))
        put(Tensor, 'cuda', lambda o, *_, **__: o.to('cuda'))
        put(Tensor, 'as_subclass', as_subclass)
        put(Tensor, 'pin_memory', lambda o: o)
        put(torch, 'load', load)
        put(nn.Module, '_apply', apply)
        for k in 'tensor','as_tensor': put(torch, k, numbered(getattr(torch, k)))
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True) # else `torch.tensor` puts numbers on a card by a way of its own
        for o in Acting(), Autocast(): stack.enter_context(o)
        waited.clear()
        yield
