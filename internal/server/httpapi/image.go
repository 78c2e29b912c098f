package httpapi

import (
	"cmp"
	"context"
	"io"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/vm"
)

// Images manages images. [image.Service] implements it.
type Images interface {
	Register(ctx context.Context, owner string, r image.Registration) (image.Image, error)
	Get(ctx context.Context, scope access.Scope, id string) (image.Image, error)
	// Share changes nothing if its function returns an error.
	Share(ctx context.Context, scope access.Scope, id string, change func(*access.Sharing) error) (image.Image, error)
	List(ctx context.Context, scope access.Scope) ([]image.Image, error)
	// Delete calls forget if no VM or snapshot of an owner uses the image, to end
	// hatchd's own use of it.
	Delete(ctx context.Context, scope access.Scope, id string, forget func(ctx context.Context, id string) error) error
	Builds
}

// Builds makes images.
type Builds interface {
	StartBuild(ctx context.Context, owner, recipe string, force bool) (image.Build, error)
	Build(ctx context.Context, scope access.Scope, id string) (image.Build, error)
	BuildLog(ctx context.Context, scope access.Scope, id string, follow bool, w io.Writer) error
}

type imageHandlers struct {
	*door
	images Images
	users  *userHandlers
	warm   Warm
	vms    interface {
		ShapeFor(ctx context.Context, owner string, req vm.CreateRequest) (vm.Shape, error)
	}
}

type createImageInput struct {
	Body api.CreateImage
}

func (h *imageHandlers) create(ctx context.Context, in *createImageInput) (*created[api.Image], error) {
	b := in.Body
	i, err := h.images.Register(ctx, owner(ctx), image.Registration{
		ID: b.ID, Name: b.Name, KernelPath: b.KernelPath, RootfsPath: b.RootfsPath,
		ModulesPath: b.ModulesPath, BootArgs: b.BootArgs,
	})
	if err != nil {
		return nil, err
	}
	return &created[api.Image]{Location: "/images/" + i.ID, Body: wholeImage(ctx, i)}, nil
}

func (h *imageHandlers) list(ctx context.Context, in *PageInput) (*paged[api.Image], error) {
	images, err := h.images.List(ctx, manager(ctx))
	if err != nil {
		return nil, err
	}
	return list[image.Image, api.Image]{
		all: images, path: "/images",
		show: func(i image.Image) api.Image { return listedImage(ctx, i) },
		at:   func(i image.Image) position { return position{i.CreatedAt, i.ID} },
	}.page(*in)
}

func (h *imageHandlers) get(ctx context.Context, in *IDPath) (*answer[api.Image], error) {
	i, err := h.images.Get(ctx, manager(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return h.withWarm(ctx, i, "")
}

func (h *imageHandlers) update(ctx context.Context, in *imagePatch) (*answer[api.Image], error) {
	i, err := h.images.Share(ctx, manager(ctx), in.ID, func(s *access.Sharing) error {
		shown := api.Image{Visibility: string(s.Visibility), SharedWith: s.With}
		after, err := patched[api.UpdateImage](h.door, shown, in.RawBody, sharingFields, nil)
		if err != nil {
			return err
		}
		*s, err = h.users.sharing(ctx, *s, after.Visibility, after.SharedWith)
		return err
	})
	if err != nil {
		return nil, err
	}
	return h.withWarm(ctx, i, "")
}

// imagePatch is a body that changes an image.
type imagePatch struct {
	IDPath
	RawBody []byte `contentType:"application/json"`
}

// sharingFields are the fields of an object that say who sees it.
var sharingFields = []string{"visibility", "shared_with"}

func (h *imageHandlers) delete(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := h.images.Delete(ctx, manager(ctx), in.ID, h.warm.Forget); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type startImageBuildInput struct {
	Body *api.BuildImage
}

func (h *imageHandlers) startBuild(ctx context.Context, in *startImageBuildInput) (*created[api.ImageBuild], error) {
	body := api.BuildImage{}
	if in.Body != nil {
		body = *in.Body
	}
	b, err := h.images.StartBuild(ctx, owner(ctx), cmp.Or(body.Recipe, "debian"), body.Force)
	if err != nil {
		return nil, err
	}
	if err := h.made.Remember(ctx, b.ID); err != nil { // a repeated request finds this build
		return nil, err
	}
	return &created[api.ImageBuild]{Location: "/images/builds/" + b.ID, Body: shownBuild(b)}, nil
}

func (h *imageHandlers) getBuild(ctx context.Context, in *IDPath) (*answer[api.ImageBuild], error) {
	b, err := h.images.Build(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.ImageBuild]{Body: shownBuild(b)}, nil
}

type imageBuildLogInput struct {
	IDPath
	Follow bool `query:"follow" doc:"Continue until the build ends."`
}

func (h *imageHandlers) buildLog(ctx context.Context, in *imageBuildLogInput) (*huma.StreamResponse, error) {
	if _, err := h.images.Build(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	write := func(ctx context.Context, w io.Writer) error {
		return h.images.BuildLog(ctx, scope(ctx), in.ID, in.Follow, w)
	}
	if in.Follow {
		write = atOnce(write)
	}
	return h.textStream(in.Follow, write), nil
}

// wholeImage returns an image as answers about one image show it.
func wholeImage(ctx context.Context, i image.Image) api.Image {
	out := listedImage(ctx, i)
	if checkRight(ctx, access.Admin) != nil {
		return out
	}
	out.KernelPath, out.RootfsPath, out.ModulesPath = i.Kernel.Path, i.Rootfs.Path, i.ModulesPath
	return out
}

// listedImage returns an image as lists show it: without host paths.
func listedImage(ctx context.Context, i image.Image) api.Image {
	return api.Image{
		ID: i.ID, Name: i.Name, OwnerID: i.OwnerID, BootArgs: i.BootArgs, KernelVersion: i.KernelVersion,
		KernelDigest: i.Kernel.Digest, RootfsDigest: i.Rootfs.Digest,
		RootfsFormat: i.RootfsFormat, RootfsBytes: i.Rootfs.Size,
		DiskMode: string(i.DiskMode), CloudInit: i.CloudInit, CreatedAt: utc(i.CreatedAt),
		Visibility: string(cmp.Or(i.Sharing.Visibility, access.Private)), SharedWith: shownWith(ctx, i.OwnerID, i.Sharing),
	}
}

func shownBuild(b image.Build) api.ImageBuild {
	return api.ImageBuild{
		ID: b.ID, Recipe: b.Recipe, State: string(b.State), Error: b.Error, ImageID: b.ImageID,
		Cached: b.Cached, StartedAt: utc(b.StartedAt), FinishedAt: utcOrNil(b.FinishedAt),
	}
}
