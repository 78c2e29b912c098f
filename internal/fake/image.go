package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/rootfs"
	"github.com/hatchvm/hatch/internal/image"
)

var (
	_ image.Initramfs = Initramfs{}
	_ image.Builder   = Builder{}
)

// Image makes a default image of two small files in dir, so that VMs can be
// created without building one.
func Image(owner, dir string) (image.Image, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return image.Image{}, err
	}
	img := image.Image{ID: image.DefaultID, OwnerID: owner, Name: "fake", RootfsFormat: "ext4", DiskMode: image.DiskOverlay, CloudInit: true}
	for name, file := range map[string]*image.File{"vmlinuz": &img.Kernel, "rootfs.ext4": &img.Rootfs} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.WriteFile(path, []byte("fake "+name), 0o600); err != nil {
				return image.Image{}, err
			}
		}
		var err error
		if *file, err = rootfs.Stat(path); err != nil {
			return image.Image{}, fmt.Errorf("cannot read the fake image: %w", err)
		}
	}
	return img, nil
}

// Initramfs makes empty archives.
type Initramfs struct{}

// Make implements image.Initramfs.
func (Initramfs) Make(context.Context, image.Boot) (string, error) { return os.DevNull, nil }

// Builder builds no images.
type Builder struct{}

// Build implements image.Builder. It fails with errs.Unsupported.
func (Builder) Build(context.Context, string, bool, io.Writer) (image.Built, error) {
	return image.Built{}, errs.New(errs.Unsupported, "fake_vmm", "cannot build an image: this is hatchd-fake").
		WithHint("start hatchd instead")
}
