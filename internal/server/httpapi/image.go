package httpapi

import (
	"cmp"
	"context"
	"io"

	"github.com/danielgtaylor/huma/v2"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/image"
)

// Images is what can be done with images. [image.Service] is one.
type Images interface {
	Register(ctx context.Context, owner string, r image.Registration) (image.Image, error)
	Get(ctx context.Context, owner, id string) (image.Image, error)
	List(ctx context.Context, owner string) ([]image.Image, error)
	// Delete calls forget, once nobody else uses the image, to end the use that
	// hatchd itself makes of it.
	Delete(ctx context.Context, owner, id string, forget func(ctx context.Context, id string) error) error
	Builds
}

// Builds makes images.
type Builds interface {
	StartBuild(ctx context.Context, owner, recipe string, force bool) (image.Build, error)
	Build(ctx context.Context, owner, id string) (image.Build, error)
	BuildLog(ctx context.Context, owner, id string, follow bool, w io.Writer) error
}

type createImageInput struct {
	Body api.CreateImage
}

func (d *door) createImage(ctx context.Context, in *createImageInput) (*created[api.Image], error) {
	b := in.Body
	i, err := d.Images.Register(ctx, owner(ctx), image.Registration{
		ID: b.ID, Name: b.Name, KernelPath: b.KernelPath, RootfsPath: b.RootfsPath,
		ModulesPath: b.ModulesPath, BootArgs: b.BootArgs,
	})
	if err != nil {
		return nil, err
	}
	return &created[api.Image]{Location: "/images/" + i.ID, Body: wholeImage(i)}, nil
}

type listImagesOutput struct {
	Body []api.Image `nullable:"false"`
}

func (d *door) listImages(ctx context.Context, _ *struct{}) (*listImagesOutput, error) {
	images, err := d.Images.List(ctx, owner(ctx))
	if err != nil {
		return nil, err
	}
	out := &listImagesOutput{Body: make([]api.Image, len(images))}
	for i, img := range images {
		out.Body[i] = listedImage(img)
	}
	return out, nil
}

func (d *door) getImage(ctx context.Context, in *IDPath) (*answer[api.Image], error) {
	i, err := d.Images.Get(ctx, owner(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return d.imageWithWarm(ctx, i, "")
}

func (d *door) deleteImage(ctx context.Context, in *IDPath) (*answer[api.Deleted], error) {
	if err := d.Images.Delete(ctx, owner(ctx), in.ID, d.Warm.Forget); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type startImageBuildInput struct {
	Body *api.BuildImage
}

func (d *door) startImageBuild(ctx context.Context, in *startImageBuildInput) (*created[api.ImageBuild], error) {
	body := api.BuildImage{}
	if in.Body != nil {
		body = *in.Body
	}
	b, err := d.Images.StartBuild(ctx, owner(ctx), cmp.Or(body.Recipe, "debian"), body.Force)
	if err != nil {
		return nil, err
	}
	return &created[api.ImageBuild]{Location: "/images/builds/" + b.ID, Body: shownBuild(b)}, nil
}

func (d *door) getImageBuild(ctx context.Context, in *IDPath) (*answer[api.ImageBuild], error) {
	b, err := d.Images.Build(ctx, owner(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.ImageBuild]{Body: shownBuild(b)}, nil
}

type imageBuildLogInput struct {
	IDPath
	Follow bool `query:"follow" doc:"Go on until the build ends."`
}

func (d *door) imageBuildLog(ctx context.Context, in *imageBuildLogInput) (*huma.StreamResponse, error) {
	if _, err := d.Images.Build(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	write := func(ctx context.Context, w io.Writer) error {
		return d.Images.BuildLog(ctx, owner(ctx), in.ID, in.Follow, w)
	}
	if in.Follow {
		write = atOnce(write)
	}
	return d.textStream(in.Follow, write), nil
}

// wholeImage returns an image as its owner sees it alone.
func wholeImage(i image.Image) api.Image {
	out := listedImage(i)
	out.KernelPath, out.RootfsPath, out.ModulesPath = i.Kernel.Path, i.Rootfs.Path, i.ModulesPath
	return out
}

// listedImage returns an image as lists show it: without host paths.
func listedImage(i image.Image) api.Image {
	return api.Image{
		ID: i.ID, Name: i.Name, BootArgs: i.BootArgs, KernelVersion: i.KernelVersion,
		KernelDigest: i.Kernel.Digest, RootfsDigest: i.Rootfs.Digest,
		RootfsFormat: i.RootfsFormat, RootfsBytes: i.Rootfs.Size,
		DiskMode: string(i.DiskMode), CloudInit: i.CloudInit, CreatedAt: utc(i.CreatedAt),
	}
}

func shownBuild(b image.Build) api.ImageBuild {
	return api.ImageBuild{
		ID: b.ID, Recipe: b.Recipe, State: string(b.State), Error: b.Error, ImageID: b.ImageID,
		Cached: b.Cached, StartedAt: utc(b.StartedAt), FinishedAt: utcOrNil(b.FinishedAt),
	}
}
