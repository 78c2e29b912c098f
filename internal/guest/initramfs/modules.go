package initramfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/image/kernel"
)

// Limits of a module directory and of an archive.
const (
	maxFiles   = 50_000    // in the directory
	maxLoaded  = 256       // modules in the archive
	maxArchive = 128 << 20 // bytes of all modules in the archive
)

// Modules is an index of a kernel's module directory. It follows no link out of that
// directory. The caller must close it.
type Modules struct {
	root    *os.Root
	files   map[string]string // by canonical name, path below root
	builtin map[string]bool
}

// OpenModules indexes dir, a directory like /lib/modules/VERSION. It needs no output of
// depmod: it reads dependencies from the modules.
func OpenModules(dir string) (*Modules, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the modules: %w", err)
	}
	m := &Modules{root: root}
	if err = m.index(); err == nil {
		err = m.readBuiltin()
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("cannot read the modules: %w", err)
	}
	return m, nil
}

// Close closes the directory.
func (m *Modules) Close() error { return m.root.Close() }

// Builtin reports whether the kernel has the module built in. It is false for a nil
// index.
func (m *Modules) Builtin(name string) bool { return m != nil && m.builtin[canonical(name)] }

// Has reports whether the module is built in or has a file.
func (m *Modules) Has(name string) bool {
	return m.Builtin(name) || m != nil && m.files[canonical(name)] != ""
}

// canonical returns the kernel's spelling: file names may have dashes.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

var errTooMany = fmt.Errorf("the directory has more than %d files", maxFiles)

func (m *Modules) index() error {
	m.files = map[string]string{}
	seen := 0
	return fs.WalkDir(m.root.FS(), ".", func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if seen++; seen > maxFiles {
			return errTooMany
		}
		if name := kernel.ModuleName(file); name != "" && e.Type().IsRegular() && m.files[name] == "" {
			m.files[name] = file
		}
		return nil
	})
}

func (m *Modules) readBuiltin() error {
	f, err := m.root.Open("modules.builtin")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	m.builtin, err = kernel.ParseBuiltin(f)
	return err
}

// loaded is a module that goes into the archive.
type loaded struct {
	name    string
	content []byte
}

// resolve returns the modules of the drivers and their dependencies, in the order in
// which they must be loaded, without those that are built in or have no file.
func (m *Modules) resolve(drivers []Driver) ([]loaded, error) {
	r := resolver{modules: m, visited: map[string]bool{}}
	for _, d := range drivers {
		if slices.ContainsFunc(d.Modules, m.Builtin) {
			continue
		}
		for _, name := range d.Modules {
			if m.Has(name) {
				if err := r.visit(canonical(name)); err != nil {
					return nil, err
				}
				break
			}
		}
	}
	return r.order, nil
}

type resolver struct {
	modules *Modules
	visited map[string]bool
	order   []loaded
	size    int
}

func (r *resolver) visit(name string) error {
	file := r.modules.files[name]
	if r.visited[name] || file == "" || r.modules.builtin[name] {
		return nil
	}
	r.visited[name] = true
	content, err := r.modules.read(file)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	before, after, err := dependencies(content)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	if err := r.visitAll(before); err != nil {
		return err
	}
	r.size += len(content)
	if len(r.order) == maxLoaded || r.size > maxArchive {
		return fmt.Errorf("the guest needs more than %d modules, or more than %d MiB of them", maxLoaded, maxArchive>>20)
	}
	r.order = append(r.order, loaded{name, content})
	return r.visitAll(after)
}

func (r *resolver) visitAll(names []string) error {
	for _, name := range names {
		if err := r.visit(name); err != nil {
			return err
		}
	}
	return nil
}
