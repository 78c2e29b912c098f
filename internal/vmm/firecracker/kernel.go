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

// kernels is a cache of uncompressed kernels: Firecracker boots only an ELF file
// (vmlinux), and distributions ship a bzImage, which has it compressed inside.
type kernels struct {
	dir string // one file for each kernel, named by its digest

	mu      sync.Mutex // held while a kernel is unpacked, so that each is unpacked once
	digests map[kernelFileID]string
}

// unfinished is the prefix of the name of a file that is not complete yet.
const unfinished = ".new."

// kernelFileID identifies the content of a file that does not change.
type kernelFileID struct {
	path    string
	size    int64
	modTime time.Time
}

// vmlinux returns the path of an uncompressed kernel that Firecracker boots. For a
// file that is not a bzImage it returns path: Firecracker reports what is wrong with
// it.
func (k *kernels) vmlinux(path string) (string, error) {
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
		return path, nil //nolint:nilerr // Firecracker reports it
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	digest, err := k.digest(f, kernelFileID{path, st.Size(), st.ModTime()})
	if err != nil {
		return "", err
	}
	cached := filepath.Join(k.dir, digest+".elf")
	now := time.Now()
	if err := os.Chtimes(cached, now, now); err == nil { // it exists; its time of use is now
		return cached, nil
	}
	return cached, errors.Join(k.unpack(found, cached), k.prune())
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

// unpack writes an uncompressed kernel, atomically and readable for all users.
func (k *kernels) unpack(from *kernel.Kernel, to string) error {
	program, err := from.Vmlinux()
	if err != nil {
		return fmt.Errorf("cannot uncompress the kernel: %w", err)
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return fmt.Errorf("cannot store the uncompressed kernel: %w", err)
	}
	f, err := os.CreateTemp(k.dir, unfinished)
	if err != nil {
		return fmt.Errorf("cannot store the uncompressed kernel: %w", err)
	}
	_, err = f.Write(program)
	err = errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close()) // sync before the rename: else a power cut could leave a short file
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot store the uncompressed kernel: %w", err), ignoreMissing(os.Remove(f.Name())))
	}
	return nil
}

// maxKernels is how many uncompressed kernels are cached, each of some 50 MiB. Running
// machines have links of their own.
const maxKernels = 8

// prune removes all but the kernels that were used last, and unfinished files of a
// daemon that died.
func (k *kernels) prune() error {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return fmt.Errorf("cannot list the uncompressed kernels: %w", err)
	}
	var cached []os.FileInfo
	var failures []error
	for _, e := range entries {
		st, err := e.Info()
		switch {
		case err != nil:
			failures = append(failures, err)
		case strings.HasPrefix(e.Name(), unfinished):
			failures = append(failures, os.Remove(filepath.Join(k.dir, e.Name())))
		default:
			cached = append(cached, st)
		}
	}
	slices.SortFunc(cached, func(a, b os.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, st := range cached[min(len(cached), maxKernels):] {
		failures = append(failures, os.Remove(filepath.Join(k.dir, st.Name())))
	}
	return errors.Join(failures...)
}
