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
	"slices"
	"strings"
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

// unfinished begins the name of a file that is not whole yet.
const unfinished = ".new."

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
	now := time.Now()
	if err := os.Chtimes(kept, now, now); err == nil { // it is there, and was used last
		return kept, nil
	}
	return kept, errors.Join(k.unpack(found, kept), k.prune())
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
	fresh, err := os.CreateTemp(k.dir, unfinished)
	if err != nil {
		return fmt.Errorf("cannot keep a bare kernel: %w", err)
	}
	_, err = fresh.Write(program)
	err = errors.Join(err, fresh.Chmod(0o444), fresh.Sync(), fresh.Close()) // before it has its name, or a power cut could leave it short
	if err == nil {
		err = os.Rename(fresh.Name(), to)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot keep a bare kernel: %w", err), ignoreMissing(os.Remove(fresh.Name())))
	}
	return nil
}

// maxKernels is how many bare kernels are kept, each of some 50 MiB. One that is
// needed again is made again; machines that run have theirs.
const maxKernels = 8

// prune removes bare kernels but those that were used last, and what a daemon that
// died has left half done.
func (k *kernels) prune() error {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return fmt.Errorf("cannot list the bare kernels: %w", err)
	}
	var kept []os.FileInfo
	var faults []error
	for _, e := range entries {
		st, err := e.Info()
		switch {
		case err != nil:
			faults = append(faults, err)
		case strings.HasPrefix(e.Name(), unfinished):
			faults = append(faults, os.Remove(filepath.Join(k.dir, e.Name())))
		default:
			kept = append(kept, st)
		}
	}
	slices.SortFunc(kept, func(a, b os.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, st := range kept[min(len(kept), maxKernels):] {
		faults = append(faults, os.Remove(filepath.Join(k.dir, st.Name())))
	}
	return errors.Join(faults...)
}
