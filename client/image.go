package client

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/hatchvm/hatch/api"
)

const (
	images = "/images"
	builds = "/images/builds"
)

// CreateImage registers a kernel and a root file system on the host.
func (c *Client) CreateImage(ctx context.Context, body api.CreateImage) (api.Image, error) {
	return post[api.Image](ctx, c, images, body)
}

// ListImages returns all images.
func (c *Client) ListImages(ctx context.Context) ([]api.Image, error) {
	return list[api.Image](ctx, c, images, nil)
}

// GetImage returns one image.
func (c *Client) GetImage(ctx context.Context, id string) (api.Image, error) {
	return fetch[api.Image](ctx, c, http.MethodGet, images, id)
}

// UpdateImage changes who sees an image. Nil fields do not change.
func (c *Client) UpdateImage(ctx context.Context, id string, body api.UpdateImage) (api.Image, error) {
	return change[api.Image](ctx, c, images, id, body)
}

// DeleteImage deletes an image.
func (c *Client) DeleteImage(ctx context.Context, id string) error {
	return c.remove(ctx, images, id)
}

// WarmImage requests a guest of the image for the warm pool. It does not wait for
// the boot; the requested guest is the first in Warm.
func (c *Client) WarmImage(ctx context.Context, id string, body api.WarmImage) (api.Image, error) {
	path, err := item(images, id, "warm")
	if err != nil {
		return api.Image{}, err
	}
	return post[api.Image](ctx, c, path, body)
}

// StartImageBuild starts to build an image and returns at once.
func (c *Client) StartImageBuild(ctx context.Context, body api.BuildImage) (api.ImageBuild, error) {
	return post[api.ImageBuild](ctx, c, builds, body)
}

// GetImageBuild returns the state of a build.
func (c *Client) GetImageBuild(ctx context.Context, id string) (api.ImageBuild, error) {
	return fetch[api.ImageBuild](ctx, c, http.MethodGet, builds, id)
}

// ImageBuildLog returns a build's log; with follow, until the build ends. The
// caller closes it.
func (c *Client) ImageBuildLog(ctx context.Context, id string, follow bool) (io.ReadCloser, error) {
	path, err := item(builds, id, "log")
	if err != nil {
		return nil, err
	}
	req := call{method: http.MethodGet, path: path, query: url.Values{}}
	if follow {
		req.query.Set("follow", "true")
	}
	return c.stream(ctx, req)
}
