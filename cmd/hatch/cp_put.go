package main

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
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// destination is what there is at the path in the guest that is copied to.
type destination struct {
	path   string
	kind   string // "" when there is nothing
	asDirs bool   // the path ends as that of a directory
}

func (j *copying) destination(ctx context.Context, to string) (destination, error) {
	d := destination{path: to, asDirs: strings.HasSuffix(to, "/") || endsInDot(to)}
	f, err := j.resolve(ctx, to)
	switch {
	case client.HasCode(err, "file_not_found"):
		return d, nil
	case err != nil:
		return d, err
	}
	if d.kind = f.Kind; d.asDirs && f.Kind != api.FileDirectory {
		return d, fmt.Errorf("%s is no directory in the VM", to)
	}
	return d, nil
}

// file returns the path that one file of this name is copied to.
func (d destination) file(name string) (string, error) {
	switch {
	case d.kind == api.FileDirectory:
		return into(d.path, name), nil
	case d.asDirs:
		return "", fmt.Errorf("%s is no directory in the VM", d.path)
	}
	return d.path, nil
}

// put copies into the guest.
func (j *copying) put(ctx context.Context, from, to string) error {
	d, err := j.destination(ctx, to)
	if err != nil {
		return err
	}
	if from == "-" {
		return j.putStream(ctx, d)
	}
	find := os.Lstat
	if j.follow || strings.HasSuffix(from, "/") {
		find = os.Stat
	}
	st, err := find(from)
	if err != nil {
		return err
	}
	whole, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	switch name := filepath.Base(whole); {
	case st.Mode().IsRegular():
		return j.putFile(ctx, from, name, d)
	case st.IsDir():
		return j.putTree(ctx, from, name, d)
	case st.Mode().Type() == fs.ModeSymlink:
		return j.putLink(ctx, from, name, d)
	}
	return errors.New("it is a device, socket or pipe")
}

// putStream unpacks stdin into a directory, or writes it to a file.
func (j *copying) putStream(ctx context.Context, d destination) error {
	if d.kind == api.FileDirectory {
		_, err := j.files.WriteTree(ctx, j.id, d.path, "", j.meter.counted(j.in))
		return err
	}
	target, err := d.file("")
	if err != nil {
		return err
	}
	_, err = j.files.WriteFile(ctx, j.id, target, j.meter.counted(j.in), client.WriteOptions{})
	return err
}

func (j *copying) putFile(ctx context.Context, from, name string, d destination) error {
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
	j.meter.total = st.Size()
	mode := bitsOf(st.Mode())
	opts := client.WriteOptions{Mode: &mode}
	if owner, ok := st.Sys().(*syscall.Stat_t); ok && j.keep {
		opts.Owner = fmt.Sprintf("%d:%d", owner.Uid, owner.Gid)
	}
	_, err = j.files.WriteFile(ctx, j.id, target, j.meter.counted(f), opts)
	return err
}

// putTree copies a directory: to what is not there yet, into a directory, or
// its contents into one.
func (j *copying) putTree(ctx context.Context, from, name string, d destination) error {
	p := &packer{job: j, top: name}
	to := d.path
	switch {
	case d.kind == "":
		to, p.top = apart(strings.TrimSuffix(to, "/."))
		p.self = true
	case d.kind != api.FileDirectory:
		return fmt.Errorf("a directory cannot be copied to %s, which is none", d.path)
	case endsInDot(from):
		p.top = "."
	default:
		p.self = true
	}
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	return j.send(ctx, to, func(out *tar.Writer) error { return p.pack(out, real) })
}

// apart returns the directory that a path of the guest is in, and its last part.
func apart(p string) (dir, name string) {
	p = strings.TrimRight(p, "/")
	dir = dirOf(p)
	return dir, p[len(dir):]
}

// putLink copies a link itself.
func (j *copying) putLink(ctx context.Context, from, name string, d destination) error {
	target, err := d.file(name)
	if err != nil {
		return err
	}
	dir, as := apart(target)
	p := &packer{job: j, top: as, self: true}
	return j.send(ctx, dir, func(out *tar.Writer) error { return p.pack(out, from) })
}

// send unpacks in the guest what pack writes.
func (j *copying) send(ctx context.Context, to string, pack func(*tar.Writer) error) error {
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
	_, err := j.files.WriteTree(ctx, j.id, to, "", j.meter.counted(r))
	_ = r.CloseWithError(errStopped)
	if ours := <-packed; ours != nil && !errors.Is(ours, errStopped) {
		return ours // the server could only say that nothing more came
	}
	return err
}

var errStopped = errors.New("nobody reads the archive any more")

// packer writes a tree of this machine into an archive.
type packer struct {
	job  *copying
	top  string // the name of the tree in the archive
	self bool   // the directory itself, too, and not only what is in it
}

func (p *packer) pack(out *tar.Writer, from string) error {
	return filepath.WalkDir(from, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, name)
		if err != nil || below == "." && !p.self {
			return err
		}
		return p.one(out, name, filepath.Join(p.top, below))
	})
}

func (p *packer) one(out *tar.Writer, name, as string) error {
	st, err := os.Lstat(name)
	if err != nil {
		return err
	}
	header, err := p.header(name, st)
	if err != nil {
		return err
	}
	if header == nil {
		p.job.left.add(name, "it is a device, socket or pipe")
		return nil
	}
	if header.Name = as; st.IsDir() {
		header.Name += "/"
	}
	if !st.Mode().IsRegular() {
		return out.WriteHeader(header)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	if _, err := io.CopyN(out, f, header.Size); err != nil {
		return fmt.Errorf("%s: it got shorter meanwhile: %w", name, err)
	}
	return nil
}

// header describes a file to the guest; nil for what is left out.
func (p *packer) header(name string, st fs.FileInfo) (*tar.Header, error) {
	target := ""
	switch st.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		var err error
		if target, err = os.Readlink(name); err != nil {
			return nil, err
		}
	default:
		return nil, nil //nolint:nilnil // none is an answer here
	}
	header, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return nil, err
	}
	header.Format = tar.FormatPAX // times to the nanosecond, names of any length
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	header.Uname, header.Gname = "", "" // of this machine
	if !p.job.keep {
		header.Uid, header.Gid = 0, 0
	}
	return header, nil
}
