package cp

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// packer writes a tree of this machine into an archive.
type packer struct {
	copy    *Copy
	top     string // name of the tree in the archive
	withTop bool   // write an entry for the top directory, too
}

func (p *packer) pack(out *tar.Writer, from string) error {
	return filepath.WalkDir(from, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, name)
		if err != nil || below == "." && !p.withTop {
			return err
		}
		return p.add(out, name, filepath.Join(p.top, below))
	})
}

// add writes one file as an entry of the archive.
func (p *packer) add(out *tar.Writer, name, as string) error {
	st, err := os.Lstat(name)
	if err != nil {
		return err
	}
	target := ""
	switch st.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = os.Readlink(name); err != nil {
			return err
		}
	default:
		p.copy.Skipped.add(name, notCopied)
		return nil
	}
	header, err := p.header(st, target)
	if err != nil {
		return err
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
		return fmt.Errorf("%s: it shrank while it was read: %w", name, err)
	}
	return nil
}

func (p *packer) header(st fs.FileInfo, target string) (*tar.Header, error) {
	header, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return nil, err
	}
	header.Format = tar.FormatPAX // times in nanoseconds, names of any length
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	header.Uname, header.Gname = "", "" // names of this machine mean nothing in the VM
	if !p.copy.KeepAll {
		header.Uid, header.Gid = 0, 0
	}
	return header, nil
}
