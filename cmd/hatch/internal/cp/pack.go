package cp

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// packer writes a tree of this machine into an archive.
type packer struct {
	copy    *Copy
	top     string // name of the tree in the archive
	withTop bool   // write an entry for the top directory, too

	linked map[inode]string // names of hard-linked files in the archive
}

type inode struct{ device, number uint64 }

// maxLinked limits the hard-linked files that a packer remembers. It packs further ones
// once per name.
const maxLinked = 100_000

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
	if st.Mode().Type() == fs.ModeSymlink || st.IsDir() && !p.copy.KeepAll || p.isLinked(st, header) {
		return out.WriteHeader(header)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if p.copy.KeepAll {
		if header.PAXRecords, err = attributesOf(f); err != nil {
			return fmt.Errorf("cannot read the extended attributes of %s: %w", name, err)
		}
	}
	if err := out.WriteHeader(header); err != nil || st.IsDir() {
		return err
	}
	if _, err := io.CopyN(out, f, header.Size); err != nil {
		return fmt.Errorf("%s: it shrank while it was read: %w", name, err)
	}
	return nil
}

// isLinked makes the header one of a hard link if the file has been packed under another
// name, and reports whether.
func (p *packer) isLinked(st fs.FileInfo, header *tar.Header) bool {
	file, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() || file.Nlink < 2 {
		return false
	}
	id := inode{uint64(file.Dev), file.Ino} //nolint:unconvert // another type on other systems
	first, packed := p.linked[id]
	switch {
	case packed:
		header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
	case p.linked == nil:
		p.linked = map[inode]string{id: header.Name}
	case len(p.linked) < maxLinked:
		p.linked[id] = header.Name
	}
	return packed
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
