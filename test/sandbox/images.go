package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// buildLimit is for an image from a slow mirror.
const buildLimit = 30 * time.Minute

// stateLimit is for the state of a build whose log has ended.
const stateLimit = 15 * time.Second

// KeptImages is the directory, beside DataDir, where images stay for later runs and for
// other sandboxes.
func (d *Daemon) KeptImages() string { return filepath.Join(filepath.Dir(d.DataDir), "images") }

// BuildImage builds the image of a recipe, or takes it from KeptImages. Only one sandbox
// builds at a time.
func (d *Daemon) BuildImage(ctx context.Context, c *client.Client, recipe string) (api.ImageBuild, error) {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	kept := d.KeptImages()
	unlock, err := lock(kept)
	if err != nil {
		return api.ImageBuild{}, err
	}
	defer unlock()
	images := filepath.Join(d.DataDir, "images")
	if err := linkTree(kept, images); err != nil {
		return api.ImageBuild{}, err
	}
	build, err := c.StartImageBuild(ctx, api.BuildImage{Recipe: recipe})
	if err != nil {
		return build, fmt.Errorf("cannot build the %s image: %w", recipe, err)
	}
	log, err := c.ImageBuildLog(ctx, build.ID, true)
	if err != nil {
		return build, err
	}
	defer func() { _ = log.Close() }()
	text, err := io.ReadAll(log) // until the build has ended
	if err == nil {
		err = Poll(stateLimit, func() (bool, error) {
			build, err = c.GetImageBuild(ctx, build.ID)
			return err == nil && build.State != "running", err
		})
	}
	if err != nil || build.State != "done" {
		return build, fmt.Errorf("cannot build the %s image: %w", recipe, errors.Join(err, fmt.Errorf("%s: %s\n%s", build.State, build.Error, text)))
	}
	if build.Cached {
		return build, nil
	}
	return build, linkTree(images, kept)
}

// lock makes the directory kept and locks it, for one process at a time.
func lock(kept string) (unlock func(), err error) {
	if err := os.MkdirAll(kept, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.Open(kept)
	if err != nil {
		return nil, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	return func() { _ = dir.Close() }, err
}

// linkTree gives to the files of from, as hard links.
func linkTree(from, to string) error {
	out, err := exec.Command("cp", "--archive", "--link", "--force", from+"/.", to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot link images: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
