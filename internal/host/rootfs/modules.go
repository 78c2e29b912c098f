package rootfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/hatchvm/hatch/internal/image/kernel"
)

// Bounds of a directory of modules. Those of distributions have 5,000 modules,
// an index of 1 MiB, and no module over 20 MiB.
const (
	maxIndex   = 8 << 20  // bytes of modules.dep or modules.builtin
	maxLine    = 64 << 10 // bytes of a line of it
	maxModules = 50_000
	maxModule  = 64 << 20 // bytes of a module, compressed or not
)

// module is the file of a module and those of its dependencies, relative to the
// directory of modules.
type module struct {
	file string
	deps []string
}

// index is the modules of a directory by their names.
type index map[string]module

// parseDep reads modules.dep, whose lines are FILE: FILE... Paths that lead out of
// the directory are an error.
func parseDep(r io.Reader) (index, error) {
	limited := &io.LimitedReader{R: r, N: maxIndex + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	found := index{}
	for lines.Scan() {
		file, deps, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		m := module{file: file, deps: strings.Fields(deps)}
		for _, f := range append([]string{m.file}, m.deps...) {
			if !isModulePath(f) {
				return nil, fmt.Errorf("modules.dep names %.100q, which is not the path of a module", f)
			}
		}
		found[kernel.ModuleName(file)] = m
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("modules.dep cannot be read: %w", err)
	}
	if limited.N == 0 || len(found) > maxModules {
		return nil, errors.New("modules.dep is too large")
	}
	return found, nil
}

// isModulePath accepts paths that stay below the directory and need no quoting for
// the programs that read root file systems.
func isModulePath(file string) bool {
	ordinary := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._/+,@=-", c)
	}
	return filepath.IsLocal(file) && len(file) < 512 && path.Clean(file) == file && kernel.ModuleName(file) != "" &&
		!strings.ContainsFunc(file, func(c rune) bool { return !ordinary(c) })
}

// modules is a directory of modules on the host. No link leads out of it.
type modules struct {
	dir     string
	root    *os.Root // nil when there are none
	index   index
	builtin map[string]bool // nil when unknown
}

// openModules reads a directory of modules; close them. Without modules.dep it lists
// the files, without their dependencies. Errors: fs.ErrNotExist when the directory is
// missing or has no modules.
func openModules(src source, dir string) (modules, error) {
	root, err := src.dir(dir)
	if err != nil {
		return modules{}, err
	}
	m := modules{dir: dir, root: root}
	if err := m.read(); err != nil {
		m.close()
		return modules{}, err
	}
	return m, nil
}

func (m *modules) close() {
	if m.root != nil {
		_ = m.root.Close()
	}
}

func (m *modules) read() (err error) {
	if m.index, err = readIndex(m.root); err != nil {
		return err
	}
	if f, err := m.root.Open("modules.builtin"); err == nil {
		defer func() { _ = f.Close() }()
		if m.builtin, err = kernel.ParseBuiltin(f); err != nil {
			return err
		}
	}
	if len(m.index) == 0 && m.builtin == nil {
		return fmt.Errorf("the directory has no modules: %w", fs.ErrNotExist)
	}
	return nil
}

func readIndex(root *os.Root) (index, error) {
	f, err := root.Open("modules.dep")
	if errors.Is(err, fs.ErrNotExist) {
		return walkModules(root.FS())
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return parseDep(f)
}

func walkModules(tree fs.FS) (index, error) {
	found := index{}
	entries := 0
	err := fs.WalkDir(tree, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; entries > maxModules {
			return errors.New("the directory has too many files for a directory of modules")
		}
		if d.Type().IsRegular() && isModulePath(file) {
			found[kernel.ModuleName(file)] = module{file: file}
		}
		return nil
	})
	return found, err
}

// has reports whether the module exists with all its dependencies.
func (m modules) has(name string) bool {
	mod, ok := m.index[name]
	if !ok {
		return false
	}
	for _, file := range append([]string{mod.file}, mod.deps...) {
		if st, err := m.root.Stat(file); err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
			return false
		}
	}
	return true
}

// madeFor returns the kernel version that the first existing one of the named
// modules was built for; "" when it is unknown.
func (m modules) madeFor(names []string) (string, error) {
	for _, name := range names {
		if !m.has(name) {
			continue
		}
		f, err := m.root.Open(m.index[name].file)
		if err != nil {
			return "", err
		}
		content, err := io.ReadAll(io.LimitReader(f, maxModule+1))
		if err = errors.Join(err, f.Close()); err != nil {
			return "", err
		}
		return kernel.ModuleVersion(content)
	}
	return "", nil
}
