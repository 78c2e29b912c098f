package httpapi

import (
	"context"
	"slices"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/warm"
)

const warmImageText = `Keep a guest of this image booted, for new VMs of the same shape to begin as. ` +
	`Answers at once with the image, the guest that was asked for first in warm; GET of the image tells how far it is. One that is there or on its way is not made again.`

// Warm keeps guests booted. [warm.Service] is one.
type Warm interface {
	Keep(ctx context.Context, shape vm.Shape) error
	List(ctx context.Context, imageID string) ([]warm.Guest, error)
	Forget(ctx context.Context, imageID string) error
}

type warmImageInput struct {
	IDPath
	Body *api.WarmImage
}

func (d *door) warmImage(ctx context.Context, in *warmImageInput) (*answer[api.Image], error) {
	img, err := d.Images.Get(ctx, owner(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	req := vm.CreateRequest{ImageID: img.ID}
	if b := in.Body; b != nil {
		req.VCPUs, req.MemMiB, req.DiskMiB = b.VCPUCount, b.MemMiB, b.DiskMiB
		req.BootArgs, req.EnableNetwork, req.Driver = b.BootArgs, b.EnableNetwork, b.VMM
	}
	shape, err := d.VMs.ShapeFor(ctx, owner(ctx), req)
	if err != nil {
		return nil, err
	}
	if err := d.Warm.Keep(ctx, shape); err != nil {
		return nil, err
	}
	return d.imageWithWarm(ctx, img, shape.Key())
}

// imageWithWarm shows an image alone, the guest of the shape with this key first
// of those that are kept.
func (d *door) imageWithWarm(ctx context.Context, img image.Image, first string) (*answer[api.Image], error) {
	kept, err := d.Warm.List(ctx, img.ID)
	if err != nil {
		return nil, err
	}
	out := wholeImage(img)
	for _, g := range kept {
		if g.Shape.Key() == first {
			out.Warm = slices.Insert(out.Warm, 0, shownWarm(g))
		} else {
			out.Warm = append(out.Warm, shownWarm(g))
		}
	}
	return &answer[api.Image]{Body: out}, nil
}

func shownWarm(g warm.Guest) api.WarmGuest {
	return api.WarmGuest{
		State: string(g.State), Reason: g.Reason,
		VCPUCount: g.Shape.VCPUs, MemMiB: g.Shape.MemMiB, DiskMiB: g.Shape.DiskMiB, BootArgs: g.Shape.BootArgs,
		EnableNetwork: g.Shape.Network, VMM: g.Shape.Machine.Driver, SizeBytes: g.Bytes, CreatedAt: utc(g.At),
	}
}
