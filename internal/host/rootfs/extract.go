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

// stagePrefix starts the names of incomplete files and directories.
const stagePrefix = ".new-"

// extract copies the named modules, and those they depend on, from the root file
// system to a directory, which it returns; "" when the root file system has no
// modules for this kernel.
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
	return i.storeModules(files)
}

// readTreeModules returns the named modules of a directory by their path in it,
// with an index of these modules.
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
	var left int64 = maxExtracted
	var dep strings.Builder
	for _, file := range closure(all, names) {
		content, err := t.read(ctx, dir+"/"+file, min(left, maxModule))
		if errors.Is(err, fs.ErrNotExist) {
			continue // an error later, if it is needed
		}
		if err != nil {
			return nil, err
		}
		files[file] = content
		left -= int64(len(content))
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

// storeModules stores files in a directory named after their content.
func (i *Inspector) storeModules(files map[string][]byte) (string, error) {
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
		return "", fmt.Errorf("cannot store the modules of a root file system: %w", err)
	}
	return final, nil
}

// store writes the files to a directory that gets its name once it is complete.
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
	d, err := os.Open(i.config.ModulesDir)
	if err != nil {
		return err
	}
	// All files first: after a crash the directory must not have empty ones.
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		return err
	}
	return os.Rename(stage, final)
}

// removeStages removes the incomplete directories of a killed hatchd. This
// inspector has none: it inspects one image at a time.
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
