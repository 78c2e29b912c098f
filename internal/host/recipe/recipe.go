// Package recipe makes images from Debian packages: `debian`, a whole system
// with systemd, sshd and cloud-init, and `minimal`, a busybox userland that
// boots in no time. Both get Debian's cloud kernel.
//
// The package sources and keys are the host's own; no other place is asked.
// The same package versions give the same root file system, bit by bit. It
// registers nothing: internal/image does. Start at [Recipes.Build].
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

// Recipes builds into one directory and keeps what it has built there.
type Recipes struct {
	dir string
}

// New returns recipes that build into dir, and removes what an earlier build
// that was killed has left there.
func New(dir string) (*Recipes, error) {
	r := &Recipes{dir: dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory for images: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, buildPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range left {
		if err := errors.Join(removeScratch(path), os.RemoveAll(path)); err != nil {
			return nil, fmt.Errorf("cannot remove what a killed build has left: %w", err)
		}
	}
	return r, nil
}

// buildPrefix starts the name of the directory of a build under way.
const buildPrefix = ".build-"

// scratchPrefix starts the path of a directory where a tree is laid out before
// it becomes a file system. It is in memory because there the order of
// directory entries, and so the result, follows from the order of their making
// alone. Its name cannot be foreseen: everybody may write to /dev/shm.
const scratchPrefix = "/dev/shm/hatch-build-"

// scratchNote is the file in a build's directory that names its scratch.
const scratchNote = "scratch"

// makeScratch makes a build's scratch and notes its name, so that it is found
// after a kill.
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

// removeScratch removes the scratch that a build's directory names, if any.
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

// job is one build under way.
type job struct {
	tmp      string // on the file system of the result
	scratch  string // in memory
	progress io.Writer
}

func (j *job) say(format string, args ...any) {
	_, _ = fmt.Fprintf(j.progress, "== "+format+"\n", args...)
}

// recipe lays out a root file system below a directory.
type recipe struct {
	text  string // what the result depends on, beside package versions
	tools []tool
	lay   func(ctx context.Context, j *job, k kernel, root string) error
	mib   int // size of the file system
}

// tool is a program a recipe runs, and the Debian package that has it.
type tool struct{ program, pkg string }

var commonTools = []tool{{"apt-get", "apt"}, {"dpkg-deb", "dpkg"}, {"depmod", "kmod"}, {"mke2fs", "e2fsprogs"}, {"debugfs", "e2fsprogs"}, {"tar", "tar"}}

func recipes() map[string]recipe {
	return map[string]recipe{"debian": debian(), "minimal": minimal()}
}

// Build implements image.Builder. Without force, the result of an earlier
// build of the same recipe is returned, however old its packages are.
func (r *Recipes) Build(ctx context.Context, name string, force bool, progress io.Writer) (image.Built, error) {
	rec, ok := recipes()[name]
	if !ok {
		return image.Built{}, errs.InvalidField("recipe", "%q is no recipe; debian or minimal can be given", name)
	}
	if built, ok := r.cached(name, rec); ok && !force {
		_, _ = fmt.Fprintln(progress, "== the cache has this image already; --force builds it anew")
		return built, nil
	}
	if err := missing(append(commonTools, rec.tools...)); err != nil {
		return image.Built{}, err
	}
	return r.build(ctx, name, rec, progress)
}

func missing(tools []tool) error {
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

	j := &job{tmp: tmp, scratch: scratch, progress: progress}
	k, err := j.fetchKernel(ctx)
	if err != nil {
		return built, err
	}
	root := filepath.Join(scratch, "root")
	if err := rec.lay(ctx, j, k, root); err != nil {
		return built, err
	}
	j.say("making the file system")
	rootfs := filepath.Join(tmp, "rootfs.ext4")
	if err := j.makeExt4(ctx, root, rootfs, rec.mib); err != nil {
		return built, err
	}
	return r.keep(name, rec, k, rootfs, j)
}

// entry is what the cache knows of a recipe's last result.
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

// keep moves the result to where its content says, and remembers it.
func (r *Recipes) keep(name string, rec recipe, k kernel, rootfs string, j *job) (image.Built, error) {
	e := entry{Recipe: rec.digest()}
	kernelDir, err := r.keepKernel(k)
	if err != nil {
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
		return image.Built{}, fmt.Errorf("cannot remember the image: %w", err)
	}
	j.say("done: sha256:%s", digest)
	return r.paths(e), os.Rename(r.entryPath(name)+".new", r.entryPath(name))
}

// keepKernel moves kernel and modules into a directory named by the kernel's content.
func (r *Recipes) keepKernel(k kernel) (string, error) {
	digest, err := fileDigest(k.image)
	if err != nil {
		return "", err
	}
	dir := "kernel-" + k.version + "-" + digest[:16]
	return dir, moveInto(filepath.Join(r.dir, dir), map[string]string{k.image: "vmlinuz", k.modules: "modules"})
}

// moveInto makes dir with the files moved into it, at once. A dir that is
// there has the same content already: VMs may be using it.
func moveInto(dir string, files map[string]string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	half, err := os.MkdirTemp(filepath.Dir(dir), buildPrefix)
	if err != nil {
		return fmt.Errorf("cannot keep the image: %w", err)
	}
	for from, name := range files {
		if err := os.Rename(from, filepath.Join(half, name)); err != nil {
			return errors.Join(fmt.Errorf("cannot keep the image: %w", err), os.RemoveAll(half))
		}
	}
	return os.Rename(half, dir)
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
