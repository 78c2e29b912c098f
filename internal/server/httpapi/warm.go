package httpapi

import (
	"context"
	"slices"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/warm"
)

const warmImageText = `Add a guest of this shape to the warm pool, from which new VMs of the same shape are cloned. ` +
	`The response comes at once, with the requested guest first in warm; GET of the image shows its progress. A guest that exists or is being booted is not booted again. Only the image's owner and admins may.`

// Warm is the warm pool. [warm.Service] implements it.
type Warm interface {
	Keep(ctx context.Context, shape vm.Shape) error
	List(ctx context.Context, imageID string) ([]warm.Entry, error)
	Forget(ctx context.Context, imageID string) error
}

type warmImageInput struct {
	IDPath
	Body *api.WarmImage
}

func (h *imageHandlers) keepWarm(ctx context.Context, in *warmImageInput) (*answer[api.Image], error) {
	img, err := h.images.Get(ctx, manager(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	if err := manager(ctx).MayChange(img.OwnerID); err != nil { // it takes memory of the host
		return nil, err
	}
	req := vm.CreateRequest{Overrides: machine.Overrides{ImageID: img.ID}}
	if b := in.Body; b != nil {
		req.VCPUs, req.MemMiB, req.DiskMiB = b.VCPUCount, b.MemMiB, b.DiskMiB
		req.BootArgs, req.EnableNetwork, req.Driver = b.BootArgs, b.EnableNetwork, b.VMM
	}
	shape, err := h.vms.ShapeFor(ctx, owner(ctx), req)
	if err != nil {
		return nil, err
	}
	if err := h.warm.Keep(ctx, shape); err != nil {
		return nil, err
	}
	return h.withWarm(ctx, img, shape.Key())
}

// withWarm answers with an image and its warm guests, the one whose shape has the key
// first in front.
func (h *imageHandlers) withWarm(ctx context.Context, img image.Image, first string) (*answer[api.Image], error) {
	entries, err := h.warm.List(ctx, img.ID)
	if err != nil {
		return nil, err
	}
	out := wholeImage(ctx, img)
	for _, g := range entries {
		if g.Shape.Key() == first {
			out.Warm = slices.Insert(out.Warm, 0, shownWarm(g))
		} else {
			out.Warm = append(out.Warm, shownWarm(g))
		}
	}
	return &answer[api.Image]{Body: out}, nil
}

func shownWarm(g warm.Entry) api.WarmGuest {
	return api.WarmGuest{
		State: string(g.State), Reason: g.Reason,
		VCPUCount: g.Shape.VCPUs, MemMiB: g.Shape.MemMiB, DiskMiB: g.Shape.DiskMiB, BootArgs: g.Shape.BootArgs,
		EnableNetwork: g.Shape.EnableNetwork, VMM: g.Shape.Machine.Driver, SizeBytes: g.Bytes, CreatedAt: utc(g.At),
	}
}
