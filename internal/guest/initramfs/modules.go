package initramfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Bounds of a module directory.
const (
	maxFiles       = 50_000
	maxBuiltinFile = 4 << 20 // bytes of modules.builtin
	maxLine        = 4 << 10
	maxLoaded      = 256 // modules in one archive
	maxArchive     = 128 << 20
)

// Modules is an index of a kernel's module directory. Files are reached through
// that directory only, whatever links it holds. Close it.
type Modules struct {
	root    *os.Root
	files   map[string]string // by canonical name, path below root
	builtin map[string]bool
}

// OpenModules indexes dir, the content of /lib/modules/VERSION. What depmod
// would make need not be there: dependencies are read from the modules.
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

// Close lets go of the directory.
func (m *Modules) Close() error { return m.root.Close() }

// Builtin reports whether the kernel has the module built in. A nil index knows
// none.
func (m *Modules) Builtin(name string) bool { return m != nil && m.builtin[canonical(name)] }

// Has reports whether the module is built in or there is a file of it.
func (m *Modules) Has(name string) bool {
	return m.Builtin(name) || m != nil && m.files[canonical(name)] != ""
}

// canonical is the kernel's own spelling: file names may have dashes.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

var errTooMany = errors.New("more files than a kernel has modules")

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
		name, _, isModule := strings.Cut(path.Base(file), ".ko")
		if isModule && e.Type().IsRegular() && formatOf(file) != unknown && m.files[canonical(name)] == "" {
			m.files[canonical(name)] = file
		}
		return nil
	})
}

func (m *Modules) readBuiltin() error {
	m.builtin = map[string]bool{}
	f, err := m.root.Open("modules.builtin")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	names, err := parseBuiltin(f)
	for _, name := range names {
		m.builtin[name] = true
	}
	return err
}

// parseBuiltin reads a modules.builtin: a path per line.
func parseBuiltin(r io.Reader) ([]string, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxBuiltinFile))
	lines.Buffer(nil, maxLine)
	var names []string
	for lines.Scan() {
		name, _, ok := strings.Cut(path.Base(lines.Text()), ".ko")
		if ok && name != "" {
			names = append(names, canonical(name))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("modules.builtin: %w", err)
	}
	return names, nil
}

// loaded is a module that goes into the archive.
type loaded struct {
	name    string
	content []byte
}

// resolve returns the files of the drivers and of all that they depend on,
// each behind what it depends on. What is built in or absent is left out.
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
		return errors.New("the modules needed for booting are too many or too large")
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
