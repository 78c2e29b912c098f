package initramfs

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/hatchvm/hatch/internal/image"
)

var _ image.Initramfs = (*Maker)(nil)

// Maker caches archives in a directory, named by a digest of their source.
type Maker struct {
	dir, agent string

	mu     sync.Mutex
	making map[string]*sync.Mutex // by key of the archive
}

// NewMaker returns a maker that caches archives in dir, with the agent at
// agentPath.
func NewMaker(dir, agentPath string) *Maker {
	return &Maker{dir: dir, agent: agentPath, making: map[string]*sync.Mutex{}}
}

// Make implements image.Initramfs.
func (m *Maker) Make(_ context.Context, b image.Boot) (string, error) {
	src := Source{AgentPath: m.agent, ModulesDir: b.ModulesPath, RootfsFormat: b.RootfsFormat, Overlay: b.DiskMode == image.DiskOverlay}
	key, err := src.key()
	if err != nil {
		return "", err
	}
	path := filepath.Join(m.dir, key+".cpio")
	m.mu.Lock()
	making := m.making[key]
	if making == nil {
		making = &sync.Mutex{}
		m.making[key] = making
	}
	m.mu.Unlock()
	making.Lock() // held during the write: calls for the same archive wait
	defer making.Unlock()
	if st, err := os.Stat(path); err == nil && st.Size() > 0 {
		return path, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot read the initramfs: %w", err)
	}
	return path, write(path, src)
}

// key returns a digest of the archive's sources. Like make, it identifies files by path,
// size and modification time: reading them would delay each start.
func (s Source) key() (string, error) {
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "%s\n%t\n", s.RootfsFormat, s.Overlay)
	files := []string{s.AgentPath}
	if s.ModulesDir != "" {
		files = append(files, s.ModulesDir, filepath.Join(s.ModulesDir, "modules.dep"))
	}
	for _, path := range files {
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) && filepath.Base(path) == "modules.dep" {
			continue // the directory has no output of depmod
		}
		if err != nil {
			return "", fmt.Errorf("cannot read a source of the initramfs: %w", err)
		}
		_, _ = fmt.Fprintf(sum, "%s\n%d\n%d\n", path, st.Size(), st.ModTime().UnixNano())
	}
	return hex.EncodeToString(sum.Sum(nil))[:32], nil
}

func write(path string, src Source) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("cannot create the directory of initramfs archives: %w", err)
	}
	// Every VMM may read the file: it has no secrets.
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("cannot write the initramfs: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := errors.Join(Build(w, src), w.Flush(), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}
