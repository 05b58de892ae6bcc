"""Stand-ins for modules of other people's programs: their names and interfaces, in plain PyTorch.

Written from the papers' definitions and the interfaces of the released modules. Parameters have the
names of released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (8, 12, 16, 20)


class WrappedConv(nn.Module):
    """A convolution under the name ``conv2``."""

    def __init__(self, kernel: int, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(incoming, outgoing, kernel, padding=kernel // 2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.conv2(maps)


def refinement(chain: Sequence[tuple[int, int, int]]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for kernel, incoming, outgoing in chain:
        layers += [WrappedConv(kernel, incoming, outgoing), nn.GroupNorm(1, outgoing), nn.ReLU()]
    return nn.Sequential(*layers)


class Affinity(nn.Module):
    """The affinity module of MRCFA; its "query" frames are the references."""

    def __init__(self, dims: Sequence[int], chains, keep: float, top: int = 5) -> None:
        super().__init__()
        for scale, dim in enumerate(dims, 1):
            setattr(self, f"q{scale}", nn.Linear(dim, dim))
            setattr(self, f"k{scale}", nn.Linear(dim, dim))
        self.hpn = nn.Module()
        names = ("layer4", "layer3", "layer2", "layer4to3", "layer3to2")
        for name, chain in zip(names, chains, strict=True):
            setattr(self.hpn, f"encoder_{name}", refinement(chain))
        self.k_top = top
        self.threh = keep

    def forward(self, query_frame, supp_frame):
        batch, references, _, height, width = query_frame[1].shape
        affinities = []
        for scale, (reference, target) in enumerate(
            zip(query_frame[1:], supp_frame[1:], strict=True), 1
        ):
            asked = getattr(self, f"q{scale}")(target[:, 0].flatten(2).mT)  # (B, Q, C)
            answering = getattr(self, f"k{scale}")(reference.flatten(3).mT)  # (B, R, N, C)
            affinity = answering @ asked.mT[:, None]  # (B, R, N, Q)
            if reference.shape[-2:] != (height, width):
                grid = affinity.unflatten(2, reference.shape[-2:]).permute(0, 1, 4, 2, 3)
                grid = F.interpolate(grid.flatten(0, 1), (height, width), mode="bilinear")
                affinity = grid.flatten(2).mT.unflatten(0, (batch, references))
            affinities.append(affinity)
        scores = affinities[-1].topk(self.k_top, -1).values.sum(-1)  # (B, R, N)
        kept = int(self.threh * height * width)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask.scatter_(2, scores.topk(kept, -1).indices, True)
        maps = []
        for affinity, target in zip(affinities, supp_frame[1:], strict=True):
            chosen = affinity[mask].reshape(-1, 1, *target.shape[-2:])  # (B*R*S, 1, h, w)
            maps.append(chosen)
        fine, middle, coarse = maps
        coarse = self.hpn.encoder_layer4(coarse)
        middle, fine = self.hpn.encoder_layer3(middle), self.hpn.encoder_layer2(fine)
        merged = self.hpn.encoder_layer4to3(_enlarged(coarse, middle) + middle)
        merged = self.hpn.encoder_layer3to2(_enlarged(merged, fine) + fine)
        refined = merged.flatten(1).unflatten(0, (batch, references, kept))  # (B, R, S, Q)
        return refined.mT.contiguous(), mask


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=True)


def _windows(maps: Tensor, side: int) -> Tensor:
    """Cuts (B, H, W, C) into (B * windows, side * side, C)."""
    rows = maps.unflatten(1, (-1, side)).unflatten(3, (-1, side))
    return rows.transpose(2, 3).flatten(3, 4).flatten(0, 2)


class WindowAttention(nn.Module):
    """The focal window attention of CFFM, with the published settings."""

    def __init__(self, dim: int, num_heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.window_size = (7, 7)
        self.expand_size = 3
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.focal_l_clips = [1, 2, 3]
        self.focal_kernel_clips = [7, 5, 3]
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(drop)

        def table(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.1 * torch.randn(shape))

        self.relative_position_bias_table = table(169, num_heads)
        self.relative_position_bias_table_to_neighbors = table(1, num_heads, 49, 132)
        self.relative_position_bias_table_to_windows = nn.ParameterList([table(num_heads, 121)])
        self.relative_position_bias_table_to_windows_clips = nn.ParameterList(
            [table(num_heads, (6 + kernel) ** 2) for kernel in self.focal_kernel_clips]
        )

    def forward(self, x_all, mask_all=None, batch_size=None, num_clips=None):
        target, *pooled = [x_all[0][0], x_all[0][1], *x_all[1:]]
        batch, dim = len(target), target.shape[-1]
        query, key, value = (_windows(part, 7) for part in self.qkv(target).chunk(3, -1))
        keys, values = [key], [value]
        for rows, columns in ((-3, -3), (-3, 3), (3, -3), (3, 3)):
            inside = torch.ones(7, 7, dtype=torch.bool)
            # A rolled window still holds positions of the window itself: those are left out.
            inside[max(0, rows) : 7 + min(0, rows), max(0, columns) : 7 + min(0, columns)] = False
            rolled = self.qkv(torch.roll(target, (rows, columns), (1, 2)))
            for parts, part in ((keys, rolled.chunk(3, -1)[1]), (values, rolled.chunk(3, -1)[2])):
                parts.append(_windows(part, 7)[:, inside.flatten()])
        padding = []
        strides, kernels = (1, 1, 2, 3), (5, *self.focal_kernel_clips)
        for maps, kernel, stride in zip(pooled, kernels, strides, strict=True):
            _, key, value = self.qkv(maps).permute(0, 3, 1, 2).chunk(3, 1)
            unfold = nn.Unfold(kernel, padding=kernel // 2, stride=stride)
            for parts, part in ((keys, key), (values, value)):
                cells = unfold(part).unflatten(1, (dim, -1))  # (B, C, keys, windows)
                parts.append(cells.permute(0, 3, 2, 1).flatten(0, 1))
            beyond = unfold(torch.ones_like(key[:1, :1])) == 0  # (1, keys, windows)
            padding.append(beyond.mT.expand(batch, -1, -1).flatten(0, 1))
        key, value = torch.cat(keys, 1), torch.cat(values, 1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        logits = self.scale * query @ key.mT + self._bias()
        masked = torch.cat(padding, 1)  # the last keys of each window
        minus = torch.zeros(len(masked), 289).masked_fill_(F.pad(masked, (181, 0)), -100.0)
        logits = logits + minus[:, None, None].to(logits)
        attended = self.attn_drop(logits.softmax(-1)) @ value
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _bias(self) -> Tensor:
        def look_up(table: Tensor, kernel: int) -> Tensor:
            grid = table.unflatten(1, (6 + kernel, 6 + kernel))
            rows = torch.arange(7)[:, None] - torch.arange(kernel) + kernel - 1
            cells = grid[:, rows[:, None, :, None], rows[None, :, None, :]]  # (heads, 7, 7, k, k)
            return cells.flatten(3).flatten(1, 2)

        parts = [
            look_up(self.relative_position_bias_table.T, 7),
            self.relative_position_bias_table_to_neighbors[0],
            look_up(self.relative_position_bias_table_to_windows[0], 5),
        ]
        for table, kernel in zip(
            self.relative_position_bias_table_to_windows_clips,
            self.focal_kernel_clips,
            strict=True,
        ):
            parts.append(look_up(table, kernel))
        return torch.cat(parts, -1)


class ConvModule(nn.Module):
    """Convolution, norm and activation, as mmcv bundles them."""

    def __init__(self, incoming: int, outgoing: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(incoming, outgoing, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outgoing)
        self.activate = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(maps)))


class Mlp(nn.Module):
    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.proj = nn.Linear(incoming, outgoing)

    def forward(self, maps: Tensor) -> Tensor:
        return self.proj(maps.flatten(2).transpose(1, 2))


class MmsegHead(nn.Module):
    """What heads of mmsegmentation have in common: the choice of levels, the loss, the accuracy."""

    def __init__(self, num_classes: int, align_corners: bool, dropout: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.ignore_index = 255
        self.dropout = nn.Dropout2d(dropout) if dropout else None
        self.loss_decode = nn.CrossEntropyLoss(reduction="none", ignore_index=255)

    def _transform_inputs(self, inputs):
        return [inputs[level] for level in range(4)]

    def losses(self, seg_logit, seg_label):
        upsampled = F.interpolate(
            input=seg_logit,
            size=seg_label.shape[2:],
            mode="bilinear",
            align_corners=self.align_corners,
        )
        labels = seg_label.squeeze(1)
        losses = {"loss_seg": self.loss_decode(upsampled, labels).mean()}
        right = upsampled.topk(1, dim=1).indices[:, 0] == labels
        return {**losses, "acc_seg": 100 * right.float().mean()}


class LinearHead(MmsegHead):
    """An all-MLP head whose levels are embedded linearly."""

    def __init__(self, channels, width, num_classes, align_corners=False, dropout=0.1) -> None:
        super().__init__(num_classes, align_corners, dropout)
        for level, count in enumerate(channels, 1):
            setattr(self, f"linear_c{level}", Mlp(count, width))
        self.linear_fuse = ConvModule(4 * width, width)
        self.linear_pred = nn.Conv2d(width, num_classes, 1)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)  # unused, as in released checkpoints

    def forward(self, inputs):
        levels = self._transform_inputs(inputs)
        size = levels[0].shape[2:]
        embedded = []
        for position, level in enumerate(levels, 1):
            rows = getattr(self, f"linear_c{position}")(level)
            maps = rows.transpose(1, 2).unflatten(2, level.shape[2:])
            embedded.append(
                F.interpolate(maps, size, mode="bilinear", align_corners=self.align_corners)
            )
        fused = self.linear_fuse(torch.cat(embedded[::-1], 1))
        return self.linear_pred(fused if self.dropout is None else self.dropout(fused))


class ClipHead(LinearHead):
    """A head that does more than fuse, all in one forward, as those of MRCFA and CFFM do."""

    def __init__(self, channels, width, num_classes, align_corners=False, dropout=0.1) -> None:
        super().__init__(channels, width, num_classes, align_corners, dropout)
        self.sr1_feat = nn.Conv2d(width, width, 4, stride=4)
        self.linear_pred2 = nn.Conv2d(width, num_classes, 1)

    def forward(self, inputs):
        levels = self._transform_inputs(inputs)
        c1 = levels[0]
        embedded = [self.linear_c1(c1).transpose(1, 2).unflatten(2, c1.shape[2:])]
        for position, level in enumerate(levels[1:], 2):
            rows = getattr(self, f"linear_c{position}")(level)
            maps = rows.permute(0, 2, 1).reshape(len(level), -1, *level.shape[2:])
            embedded.insert(
                0, F.interpolate(maps, c1.shape[2:], None, "bilinear", self.align_corners)
            )
        fused = self.linear_fuse(torch.cat(embedded, dim=1))
        half = [side // 2 for side in c1.shape[2:]]
        values = F.interpolate(fused, half, mode="bilinear", align_corners=False)
        context = F.interpolate(
            self.sr1_feat(values), c1.shape[2:], mode="bilinear", align_corners=False
        )
        per_frame = self.linear_pred(fused if self.dropout is None else self.dropout(fused))
        return torch.cat([per_frame, self.linear_pred2(fused + context)], 1)


class ProjectionsHead(nn.Module):
    """An all-MLP head as transformers had it before its fifth version."""

    def __init__(self, channels, width, num_classes) -> None:
        super().__init__()
        self.linear_c = nn.ModuleList(Mlp(count, width) for count in channels)
        self.linear_fuse = nn.Conv2d(4 * width, width, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, encoder_hidden_states):
        size = encoder_hidden_states[0].shape[2:]
        embedded = [
            F.interpolate(
                linear(level).transpose(1, 2).unflatten(2, level.shape[2:]), size, mode="bilinear"
            )
            for linear, level in zip(self.linear_c, encoder_hidden_states, strict=True)
        ]
        fused = self.activation(self.batch_norm(self.linear_fuse(torch.cat(embedded[::-1], 1))))
        return self.classifier(self.dropout(fused))


class ConvolutionHead(MmsegHead):
    """An all-MLP head whose levels pass a convolution, a norm and an activation."""

    def __init__(self, channels, width, num_classes, align_corners=False, dropout=0.1) -> None:
        super().__init__(num_classes, align_corners, dropout)
        self.convs = nn.ModuleList(ConvModule(count, width) for count in channels)
        self.fusion_conv = ConvModule(4 * width, width)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def cls_seg(self, feature):
        return self.conv_seg(feature if self.dropout is None else self.dropout(feature))

    def forward(self, inputs):
        levels = self._transform_inputs(inputs)
        resized = [
            F.interpolate(
                conv(level), levels[0].shape[2:], mode="bilinear", align_corners=self.align_corners
            )
            for conv, level in zip(self.convs, levels, strict=True)
        ]
        return self.cls_seg(self.fusion_conv(torch.cat(resized, 1)))

    def loss_by_feat(self, seg_logits, batch_data_samples):
        labels = torch.stack([sample["gt_sem_seg"] for sample in batch_data_samples])
        return self.losses(seg_logits, labels)


def make_levels(dtype=torch.float64):
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    return [
        torch.randn(2, channels, *size, dtype=dtype, requires_grad=True)
        for channels, size in zip(CHANNELS, sizes, strict=True)
    ]


def make_upsampling_head(align_corners=False, last=None):
    upsample = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=align_corners)
    return nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), upsample, last or nn.Identity())
