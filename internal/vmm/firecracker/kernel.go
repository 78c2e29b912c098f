//go:build linux && amd64

package firecracker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/image/kernel"
)

// kernels keeps bare kernels: Firecracker takes an ELF program only, and what
// distributions ship is a bzImage, in which it is compressed.
type kernels struct {
	dir string // one file for each kernel, by its digest

	mu      sync.Mutex // held while a kernel is unpacked: once is enough
	digests map[kernelFileID]string
}

// kernelFileID stands for a file's content as long as nobody changes it.
type kernelFileID struct {
	path    string
	size    int64
	modTime time.Time
}

// bare returns the path of a kernel that Firecracker takes. A file that is no
// bzImage is taken as it is: Firecracker will say what is wrong with it.
func (k *kernels) bare(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot open the kernel: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	found, err := kernel.Read(f, st.Size())
	if err != nil || found.Format != kernel.BzImage {
		return path, nil //nolint:nilerr // for Firecracker to judge
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	digest, err := k.digest(f, kernelFileID{path, st.Size(), st.ModTime()})
	if err != nil {
		return "", err
	}
	kept := filepath.Join(k.dir, digest+".elf")
	if _, err := os.Stat(kept); err == nil {
		return kept, nil
	}
	return kept, k.unpack(found, kept)
}

func (k *kernels) digest(f *os.File, id kernelFileID) (string, error) {
	if d, ok := k.digests[id]; ok {
		return d, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, id.size)); err != nil {
		return "", fmt.Errorf("cannot read the kernel: %w", err)
	}
	d := hex.EncodeToString(sum.Sum(nil))
	k.digests[id] = d
	return d, nil
}

// unpack writes a bare kernel, whole or not at all. Everybody may read it.
func (k *kernels) unpack(from *kernel.Kernel, to string) error {
	program, err := from.Vmlinux()
	if err != nil {
		return fmt.Errorf("cannot take the kernel out of its file: %w", err)
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return fmt.Errorf("cannot keep a bare kernel: %w", err)
	}
	fresh, err := os.CreateTemp(k.dir, ".new.")
	if err != nil {
		return fmt.Errorf("cannot keep a bare kernel: %w", err)
	}
	_, err = fresh.Write(program)
	err = errors.Join(err, fresh.Chmod(0o444), fresh.Close())
	if err == nil {
		err = os.Rename(fresh.Name(), to)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot keep a bare kernel: %w", err), ignoreMissing(os.Remove(fresh.Name())))
	}
	return nil
}
