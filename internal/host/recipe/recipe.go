// Package recipe makes images from Debian packages: `debian`, a whole system with
// systemd, sshd and cloud-init, `base`, the same with what E2B's clients expect, and
// `minimal`, a busybox userland that boots fast. All get Debian's cloud kernel.
//
// It uses the Debian mirrors and keys of the host, or the mirrors that its caller
// names. The same package versions
// give the same root file system, bit by bit. internal/image registers the result.
// Start at [Recipes.Build].
package recipe

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

var _ image.Builder = (*Recipes)(nil)

// Recipes builds into one directory, which is also its cache.
type Recipes struct {
	dir     string
	mirrors []string // of Debian, and of its security archive; empty means the host's
}

// New returns recipes that build into dir, and removes what killed builds left
// there. The mirrors are URLs: of Debian's archive, and of its security archive;
// without one, that of the host is used.
func New(dir string, mirrors []string) (*Recipes, error) {
	r := &Recipes{dir: dir, mirrors: mirrors}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for images: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, buildPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range left {
		if err := errors.Join(removeScratch(path), os.RemoveAll(path)); err != nil {
			return nil, fmt.Errorf("cannot remove the files of a killed build: %w", err)
		}
	}
	return r, nil
}

// buildPrefix starts the name of the directory of a build in progress.
const buildPrefix = ".build-"

// scratchPrefix starts the path of the directory in which a tree is made before it
// becomes a file system. It is in memory, where the order of directory entries, and
// so the result, depends on the order of their creation only. Its name is random:
// every user may write to /dev/shm.
const scratchPrefix = "/dev/shm/hatch-build-"

// scratchNote is the file in a build's directory that contains the path of its
// scratch directory.
const scratchNote = "scratch"

// makeScratch makes a build's scratch directory and writes its path to a file, by
// which it is removed after a kill.
func makeScratch(tmp string) (string, error) {
	scratch, err := os.MkdirTemp(filepath.Dir(scratchPrefix), filepath.Base(scratchPrefix))
	if err != nil {
		return "", fmt.Errorf("cannot make a directory for the build: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tmp, scratchNote), []byte(scratch), 0o600); err != nil {
		return "", errors.Join(fmt.Errorf("cannot make a directory for the build: %w", err), os.Remove(scratch))
	}
	return scratch, nil
}

// removeScratch removes the scratch directory of a build, if there is one.
func removeScratch(tmp string) error {
	scratch, err := os.ReadFile(filepath.Join(tmp, scratchNote))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if path := string(scratch); filepath.Clean(path) == path && strings.HasPrefix(path, scratchPrefix) {
		return os.RemoveAll(path)
	}
	return nil
}

// job is one build in progress.
type job struct {
	tmp      string // on the file system of the result
	scratch  string // in memory
	progress io.Writer
	mirrors  []string // of the recipes
}

func (j *job) report(format string, args ...any) {
	_, _ = fmt.Fprintf(j.progress, "== "+format+"\n", args...)
}

// recipe makes a root file system below a directory.
type recipe struct {
	text  string // everything that the result depends on, except package versions
	tools []tool
	make  func(ctx context.Context, j *job, k kernel, root string) error
	mib   int // size of the file system
}

// tool is a program that a recipe runs, and its Debian package.
type tool struct{ program, pkg string }

var commonTools = []tool{{"apt-get", "apt"}, {"dpkg-deb", "dpkg"}, {"depmod", "kmod"}, {"mke2fs", "e2fsprogs"}, {"debugfs", "e2fsprogs"}, {"tar", "tar"}}

var recipes = map[string]recipe{
	// A whole Debian 12: systemd, sshd, cloud-init, and the kernel's modules.
	"debian": {
		text:  plainDebian.text(),
		tools: []tool{{"mmdebstrap", "mmdebstrap"}},
		make:  plainDebian.make, mib: 472,
	},
	// The same with what programs of E2B's clients expect: a user, Python, Node and git.
	"base": {
		text:  baseDebian.text(),
		tools: []tool{{"mmdebstrap", "mmdebstrap"}},
		make:  baseDebian.make, mib: 1024,
	},
	// A userland of one program. It has no cloud-init and no sshd; the agent sets
	// its address and its name.
	"minimal": {text: minimalText + inittab, make: makeMinimal, mib: 16},
}

// Build implements image.Builder. Without force it returns the result of an earlier
// build of the same recipe, even with old packages.
func (r *Recipes) Build(ctx context.Context, name string, force bool, progress io.Writer) (image.Built, error) {
	rec, ok := recipes[name]
	if !ok {
		return image.Built{}, errs.InvalidField("recipe", "%q is not a recipe: want debian, minimal or base", name)
	}
	if built, ok := r.cached(name, rec); ok && !force {
		_, _ = fmt.Fprintln(progress, "== the cache has this image already; --force builds it again")
		return built, nil
	}
	if err := requireTools(append(commonTools, rec.tools...)); err != nil {
		return image.Built{}, err
	}
	return r.build(ctx, name, rec, progress)
}

func requireTools(tools []tool) error {
	var programs, packages []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil {
			programs, packages = append(programs, t.program), append(packages, t.pkg)
		}
	}
	if len(programs) == 0 {
		return nil
	}
	return errs.New(errs.Unsupported, "build_tools_missing", "cannot build the image: the host has no %s", strings.Join(programs, ", ")).
		WithHint("apt-get install %s", strings.Join(packages, " "))
}

func (r *Recipes) build(ctx context.Context, name string, rec recipe, progress io.Writer) (built image.Built, err error) {
	tmp, err := os.MkdirTemp(r.dir, buildPrefix)
	if err != nil {
		return built, fmt.Errorf("cannot make a directory for the build: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	scratch, err := makeScratch(tmp)
	if err != nil {
		return built, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()

	j := &job{tmp: tmp, scratch: scratch, progress: progress, mirrors: r.mirrors}
	k, err := j.fetchKernel(ctx)
	if err != nil {
		return built, err
	}
	root := filepath.Join(scratch, "root")
	if err := rec.make(ctx, j, k, root); err != nil {
		return built, err
	}
	j.report("making the file system")
	rootfs := filepath.Join(tmp, "rootfs.ext4")
	if err := j.makeExt4(ctx, root, rootfs, rec.mib); err != nil {
		return built, err
	}
	return r.addToCache(name, rec, k, rootfs, j)
}

// entry is the cache entry of a recipe.
type entry struct {
	Recipe                  string // digest of the recipe's text
	Kernel, Rootfs, Modules string // relative to the images' directory
}

func (rec recipe) digest() string {
	sum := sha256.Sum256([]byte(rec.text))
	return hex.EncodeToString(sum[:])
}

func (r *Recipes) entryPath(name string) string { return filepath.Join(r.dir, name+".json") }

func (r *Recipes) cached(name string, rec recipe) (image.Built, bool) {
	text, err := os.ReadFile(r.entryPath(name))
	if err != nil {
		return image.Built{}, false
	}
	var e entry
	if json.Unmarshal(text, &e) != nil || e.Recipe != rec.digest() {
		return image.Built{}, false
	}
	built := r.paths(e)
	for _, path := range []string{built.Kernel, built.Rootfs, built.Modules} {
		if _, err := os.Stat(path); err != nil {
			return image.Built{}, false
		}
	}
	built.Cached = true
	return built, true
}

func (r *Recipes) paths(e entry) image.Built {
	return image.Built{Kernel: filepath.Join(r.dir, e.Kernel), Rootfs: filepath.Join(r.dir, e.Rootfs), Modules: filepath.Join(r.dir, e.Modules)}
}

// addToCache moves the result to directories named after its content and writes the
// cache entry.
func (r *Recipes) addToCache(name string, rec recipe, k kernel, rootfs string, j *job) (image.Built, error) {
	e := entry{Recipe: rec.digest()}
	kernelDigest, err := fileDigest(k.image)
	if err != nil {
		return image.Built{}, err
	}
	kernelDir := "kernel-" + k.version + "-" + kernelDigest[:16]
	if err := moveInto(filepath.Join(r.dir, kernelDir), map[string]string{k.image: "vmlinuz", k.modules: "modules"}); err != nil {
		return image.Built{}, err
	}
	e.Kernel, e.Modules = filepath.Join(kernelDir, "vmlinuz"), filepath.Join(kernelDir, "modules")
	digest, err := fileDigest(rootfs)
	if err != nil {
		return image.Built{}, err
	}
	dir := name + "-" + digest[:16]
	e.Rootfs = filepath.Join(dir, "rootfs.ext4")
	if err := moveInto(filepath.Join(r.dir, dir), map[string]string{rootfs: "rootfs.ext4"}); err != nil {
		return image.Built{}, err
	}
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return image.Built{}, err
	}
	if err := os.WriteFile(r.entryPath(name)+".new", text, 0o600); err != nil {
		return image.Built{}, fmt.Errorf("cannot write the image's cache entry: %w", err)
	}
	j.report("done: sha256:%s", digest)
	return r.paths(e), os.Rename(r.entryPath(name)+".new", r.entryPath(name))
}

// moveInto moves the files into a new directory, which appears complete. An existing
// dir has the same content, and VMs may use it.
func moveInto(dir string, files map[string]string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), buildPrefix)
	if err != nil {
		return fmt.Errorf("cannot store the image: %w", err)
	}
	for from, name := range files {
		if err := os.Rename(from, filepath.Join(tmp, name)); err != nil {
			return errors.Join(fmt.Errorf("cannot store the image: %w", err), os.RemoveAll(tmp))
		}
	}
	return os.Rename(tmp, dir)
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", filepath.Base(path), err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
