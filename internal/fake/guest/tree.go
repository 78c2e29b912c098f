package guest

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/hatchvm/hatch/internal/file"
)

// ReadTree implements file.Guest.
func (g *Files) ReadTree(_ context.Context, p string) (io.ReadCloser, error) {
	if _, err := g.stat(p); err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(g.pack(local(p), w)) }()
	return r, nil
}

func (g *Files) pack(top string, to io.Writer) error {
	out := tar.NewWriter(to)
	err := g.walk(top, func(name string, st fs.FileInfo) error {
		return g.packOne(out, name, path.Join(path.Base(top), strings.TrimPrefix(name, top)), st)
	}, func(string) bool { return true })
	return errors.Join(err, out.Close())
}

func (g *Files) packOne(out *tar.Writer, name, as string, st fs.FileInfo) error {
	target := ""
	if st.Mode().Type() == fs.ModeSymlink {
		var err error
		if target, err = g.root.Readlink(name); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return nil // a socket, of which tar knows nothing
	}
	header.Name = as
	if err := out.WriteHeader(header); err != nil || !st.Mode().IsRegular() {
		return err
	}
	f, err := g.root.Open(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	return errors.Join(err, f.Close())
}

// WriteTree implements file.Guest.
func (g *Files) WriteTree(_ context.Context, spec file.TreeSpec, archive io.Reader) error {
	top := local(spec.Path)
	if err := g.root.MkdirAll(top, 0o755); err != nil {
		return agentError(spec.Path, err)
	}
	in := tar.NewReader(archive)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, archive)
			return err
		}
		if err != nil {
			return err
		}
		name := path.Join(top, path.Join("/", header.Name))
		if err := g.unpackOne(name, header, in); err != nil {
			return agentError(spec.Path, err)
		}
	}
}

func (g *Files) unpackOne(name string, header *tar.Header, content io.Reader) error {
	if err := g.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	mode := header.FileInfo().Mode()
	switch header.Typeflag {
	case tar.TypeDir:
		if err := g.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return g.root.Chmod(name, mode)
	case tar.TypeReg:
		return g.replace(name, mode, content)
	case tar.TypeSymlink:
		return errors.Join(ignoreMissing(g.root.Remove(name)), g.root.Symlink(header.Linkname, name))
	}
	return nil
}
