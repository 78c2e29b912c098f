package cp

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// destination is the path in the VM to copy to.
type destination struct {
	path    string
	kind    string // of the existing file, "" for none
	wantDir bool   // the path ends like that of a directory
}

func (c *Copy) destination(ctx context.Context, to string) (destination, error) {
	d := destination{path: to, wantDir: strings.HasSuffix(to, "/") || isContents(to)}
	f, err := c.resolve(ctx, to)
	switch {
	case client.HasCode(err, "file_not_found"):
		return d, nil
	case err != nil:
		return d, err
	}
	if d.kind = f.Kind; d.wantDir && f.Kind != api.FileDirectory {
		return d, fmt.Errorf("%s is not a directory in the VM", to)
	}
	if f.Kind == api.FileRegular {
		d.path = client.PathOf(f) // the end of a link, which an archive would replace
	}
	return d, nil
}

// file returns the path to copy one file of this name to.
func (d destination) file(name string) (string, error) {
	switch {
	case d.kind == api.FileDirectory:
		return strings.TrimRight(d.path, "/") + "/" + name, nil
	case d.wantDir:
		return "", fmt.Errorf("%s is not a directory in the VM", d.path)
	}
	return d.path, nil
}

// Put copies the file or tree at from, or stdin, to the path to in the VM.
func (c *Copy) Put(ctx context.Context, from, to string) error {
	d, err := c.destination(ctx, to)
	if err != nil {
		return err
	}
	if from == Stream {
		return c.putStream(ctx, d)
	}
	stat := os.Lstat
	if c.FollowLinks || strings.HasSuffix(from, "/") {
		stat = os.Stat
	}
	st, err := stat(from)
	if err != nil {
		return err
	}
	full, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	switch name := filepath.Base(full); {
	case st.Mode().IsRegular():
		return c.putFile(ctx, from, name, d)
	case st.IsDir():
		return c.putTree(ctx, from, name, d)
	case st.Mode().Type() == fs.ModeSymlink:
		target, err := d.file(name)
		if err != nil {
			return err
		}
		return c.putEntry(ctx, from, target)
	}
	return errors.New(notCopied)
}

// putEntry copies one file or link as an entry of an archive.
func (c *Copy) putEntry(ctx context.Context, from, target string) error {
	dir, as := split(target)
	p := &packer{copy: c, top: as}
	return c.upload(ctx, dir, func(out *tar.Writer) error { return p.add(out, from, as) })
}

// putStream unpacks stdin into a directory, or writes it to a file.
func (c *Copy) putStream(ctx context.Context, d destination) error {
	if d.kind == api.FileDirectory {
		archive, err := decompressed(c.counted(c.Stdin))
		if err == nil {
			_, err = c.Client.WriteTree(ctx, c.VM, d.path, "", archive)
		}
		return err
	}
	target, err := d.file("")
	if err != nil {
		return err
	}
	_, err = c.Client.WriteFile(ctx, c.VM, target, c.counted(c.Stdin), client.WriteOptions{})
	return err
}

func (c *Copy) putFile(ctx context.Context, from, name string, d destination) error {
	target, err := d.file(name)
	if err != nil {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	c.Progress.total.Store(st.Size())
	mode := unixMode(st.Mode())
	opts := client.WriteOptions{Mode: &mode}
	if owner, ok := st.Sys().(*syscall.Stat_t); ok && c.KeepAll {
		opts.Owner = fmt.Sprintf("%d:%d", owner.Uid, owner.Gid)
		attributes, err := attributesOf(f)
		if err != nil {
			return fmt.Errorf("cannot read the extended attributes of %s: %w", from, err)
		}
		if len(attributes) > 0 { // only an archive has them
			real, err := filepath.EvalSymlinks(from)
			if err != nil {
				return err
			}
			return c.putEntry(ctx, real, target)
		}
	}
	_, err = c.Client.WriteFile(ctx, c.VM, target, c.counted(f), opts)
	return err
}

// putTree copies a directory: as a new directory, into an existing one, or its
// contents into one.
func (c *Copy) putTree(ctx context.Context, from, name string, d destination) error {
	p := &packer{copy: c, top: name}
	to := d.path
	switch {
	case d.kind == "":
		to, p.top = split(strings.TrimSuffix(to, "/."))
		p.withTop = true
	case d.kind != api.FileDirectory:
		return fmt.Errorf("a directory cannot be copied to %s, which is not one", d.path)
	case isContents(from):
		p.top = "."
	default:
		p.withTop = true
	}
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	return c.upload(ctx, to, func(out *tar.Writer) error { return p.pack(out, real) })
}

var errUploadEnded = errors.New("the upload has ended")

// upload unpacks the archive that pack writes in the directory to of the VM.
func (c *Copy) upload(ctx context.Context, to string, pack func(*tar.Writer) error) error {
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		out := tar.NewWriter(w)
		err := pack(out)
		if err == nil {
			err = out.Close()
		}
		w.CloseWithError(err)
		packed <- err
	}()
	_, err := c.Client.WriteTree(ctx, c.VM, to, "", c.counted(r))
	_ = r.CloseWithError(errUploadEnded)
	if packErr := <-packed; packErr != nil && !errors.Is(packErr, errUploadEnded) {
		return packErr // the server's error only says that the archive is cut short
	}
	return err
}
