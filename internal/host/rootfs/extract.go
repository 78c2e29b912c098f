package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image/kernel"
)

// maxExtracted bounds the modules of one root file system, in bytes.
const maxExtracted = 256 << 20

// stagePrefix starts the name of what is not complete yet.
const stagePrefix = ".new-"

// extract takes the named modules, and those they depend on, out of the root
// file system and returns the directory that keeps them; "" when the root file
// system has no modules for this kernel.
func (i *Inspector) extract(ctx context.Context, t tree, version string, names []string) (string, error) {
	if version == "" {
		return "", nil
	}
	files, err := readTreeModules(ctx, t, "/lib/modules/"+version, names)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if errors.Is(err, errDamaged) {
		return "", errs.InvalidField("rootfs_path", "the kernel's modules cannot be read from the root file system: %v", err).
			WithHint("check the file system, or give the modules as modules_path")
	}
	if err != nil {
		return "", err
	}
	return i.keep(files)
}

// readTreeModules returns the wanted files of a directory of modules by their
// path in it, and an index of just those.
func readTreeModules(ctx context.Context, t tree, dir string, names []string) (map[string][]byte, error) {
	text, err := t.read(ctx, dir+"/modules.dep", maxIndex)
	if err != nil {
		return nil, err
	}
	all, err := parseDep(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	files := map[string][]byte{}
	var room int64 = maxExtracted
	var dep strings.Builder
	for _, file := range closure(all, names) {
		content, err := t.read(ctx, dir+"/"+file, min(room, maxModule))
		if errors.Is(err, fs.ErrNotExist) {
			continue // missed later, if it is needed
		}
		if err != nil {
			return nil, err
		}
		files[file] = content
		room -= int64(len(content))
		fmt.Fprintf(&dep, "%s: %s\n", file, strings.Join(all[kernel.ModuleName(file)].deps, " "))
	}
	files["modules.dep"] = []byte(dep.String())
	builtin, err := t.read(ctx, dir+"/modules.builtin", maxIndex)
	if err == nil {
		files["modules.builtin"] = builtin
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return files, nil
}

// closure returns the files of the named modules and of those they depend on,
// sorted.
func closure(all index, names []string) []string {
	wanted := map[string]bool{}
	for _, name := range names {
		m, ok := all[name]
		if !ok {
			continue
		}
		wanted[m.file] = true
		for _, dep := range m.deps {
			wanted[dep] = true
		}
	}
	return slices.Sorted(maps.Keys(wanted))
}

// keep stores files in a directory named after their content. It appears
// complete or not at all.
func (i *Inspector) keep(files map[string][]byte) (string, error) {
	names := slices.Sorted(maps.Keys(files))
	digest := sha256.New()
	for _, name := range names {
		fmt.Fprintf(digest, "%s %d\n", name, len(files[name]))
		digest.Write(files[name])
	}
	final := filepath.Join(i.config.ModulesDir, hex.EncodeToString(digest.Sum(nil)))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := i.store(names, files, final); err != nil {
		return "", fmt.Errorf("cannot keep the modules of a root file system: %w", err)
	}
	return final, nil
}

func (i *Inspector) store(names []string, files map[string][]byte, final string) (err error) {
	if err := i.removeStages(); err != nil {
		return err
	}
	stage, err := os.MkdirTemp(i.config.ModulesDir, stagePrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(stage))
		}
	}()
	for _, name := range names {
		path := filepath.Join(stage, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, files[name], 0o644); err != nil {
			return err
		}
	}
	if err := syncFiles(i.config.ModulesDir); err != nil {
		return err
	}
	return os.Rename(stage, final)
}

// removeStages removes what a hatchd that was killed has left. This inspector
// has none of its own under way: it looks at one image at a time.
func (i *Inspector) removeStages() error {
	if err := os.MkdirAll(i.config.ModulesDir, 0o700); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(i.config.ModulesDir, stagePrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// syncFiles puts everything on the directory's file system on disk, so that no
// directory is in place whose files a crash has emptied.
func syncFiles(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
