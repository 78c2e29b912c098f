package rootfs

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/image/kernel"
)

// drivers says how VMs of an image get their drivers.
type drivers struct {
	modulesPath string // "" when the kernel needs none
	mode        image.DiskMode
}

// findDrivers finds the modules that the kernel needs, and refuses a kernel
// that lacks a driver even with them.
func (i *Inspector) findDrivers(ctx context.Context, src source, r image.Registration, kern kernelFacts, t tree, n needs) (drivers, error) {
	if missing := lacking(features, kern.hasFeature); len(missing) > 0 {
		return drivers{}, missingDrivers(kern.version, missing, "(it is never one)")
	}
	builtin := func(d kernel.Driver) bool { return kern.witness.Builtin(d) == kernel.Yes }
	mode, missing := n.judge(builtin)
	if r.ModulesPath == "" && mode == image.DiskOverlay && len(missing) == 0 {
		return drivers{mode: mode}, nil
	}
	mods, searched, err := i.findModules(ctx, src, r, kern, t, n)
	if err != nil {
		return drivers{}, err
	}
	defer mods.close()
	if mods.dir == "" {
		if len(missing) > 0 {
			return drivers{}, missingDrivers(kern.version, missing, searched)
		}
		return drivers{mode: mode}, nil
	}
	return kern.judgeWith(mods, searched, n)
}

func (k kernelFacts) hasFeature(d kernel.Driver) bool {
	return k.witness.Config == nil || k.witness.Builtin(d) == kernel.Yes
}

// judgeWith judges the kernel together with a directory of its modules.
func (k kernelFacts) judgeWith(mods modules, searched string, n needs) (drivers, error) {
	witness := k.witness
	witness.Modules = mods.builtin
	loadable := witness.Config == nil || witness.Config["MODULES"] == "y"
	has := func(d kernel.Driver) bool {
		return witness.Builtin(d) == kernel.Yes || loadable && mods.has(d.Module)
	}
	mode, missing := n.judge(has)
	if len(missing) > 0 {
		return drivers{}, missingDrivers(k.version, missing, searched)
	}
	return drivers{modulesPath: mods.dir, mode: mode}, nil
}

// findModules looks for the kernel's modules: in modules_path if that is given,
// else beside the kernel, else in the root file system. searched says where, for a
// message. The result has no directory when there are none; else close it.
func (i *Inspector) findModules(ctx context.Context, src source, r image.Registration, kern kernelFacts, t tree, n needs) (mods modules, searched string, err error) {
	names := n.names(nil)
	if r.ModulesPath != "" {
		mods, err = givenModules(src, r.ModulesPath, kern.version, names)
		return mods, "in modules_path", err
	}
	for _, dir := range besideKernel(r.KernelPath, kern.version) {
		mods, err := openModules(src, dir)
		if err == nil && mods.fit(kern.version, names) {
			return mods, "beside it", nil
		}
		mods.close()
	}
	dir, err := i.extract(ctx, t, kern.version, n.names(i.config.Modules))
	if err != nil || dir == "" {
		return modules{}, "beside it or in the root file system" + t.limits(), err
	}
	mods, err = openModules(anywhere{}, dir) // hatchd's own copy
	if err == nil && !mods.fit(kern.version, names) {
		mods.close()
		return modules{}, "beside it or, for this kernel version, in the root file system", nil
	}
	return mods, "in the root file system", err
}

// fit reports whether the modules are for the kernel's version, if both are known.
func (m modules) fit(version string, names []string) bool {
	made, err := m.madeFor(names)
	return err == nil && (made == "" || version == "" || made == version)
}

// besideKernel returns the directories near a kernel that may have its modules.
func besideKernel(kernelPath, version string) []string {
	dir := filepath.Dir(kernelPath)
	dirs := []string{filepath.Join(dir, "modules")}
	if version != "" {
		dirs = []string{
			filepath.Join(dir, "modules", version), filepath.Join(dir, version), filepath.Join(dir, "modules"),
			filepath.Join(dir, "lib", "modules", version),
			filepath.Join(filepath.Dir(dir), "lib", "modules", version), // for a kernel in /boot
		}
	}
	return dirs
}

// givenModules reads modules_path: the directory of the modules, or one that
// contains it under the kernel's version.
func givenModules(src source, dir, version string, names []string) (modules, error) {
	const field = "modules_path"
	if !filepath.IsAbs(dir) {
		return modules{}, errs.InvalidField(field, "%q is not an absolute path", dir)
	}
	dirs := []string{dir}
	if version != "" {
		dirs = []string{filepath.Join(dir, version), filepath.Join(dir, "lib", "modules", version), dir}
	}
	if a, ok := src.(allowed); ok { // before a message can tell more
		root, err := a.dir(dir)
		if err != nil {
			return modules{}, refuse(field, dir, err)
		}
		_ = root.Close()
	}
	for _, d := range dirs {
		mods, err := openModules(src, d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return modules{}, errs.InvalidField(field, "the modules in %s cannot be read", dir).WithCause(err).
				WithHint("give a directory such as /lib/modules/VERSION, with modules.dep in it, that hatchd may read")
		}
		if err := mods.checkVersion(dir, version, names); err != nil {
			mods.close()
			return modules{}, err
		}
		return mods, nil
	}
	return modules{}, errs.InvalidField(field, "there are no kernel modules in %s", dir).
		WithHint("give a directory such as /lib/modules/VERSION, with modules.dep in it")
}

func (m modules) checkVersion(dir, version string, names []string) error {
	made, err := m.madeFor(names)
	if err != nil {
		return errs.InvalidField("modules_path", "a module in %s cannot be read: %v", dir, err)
	}
	if made != "" && version != "" && made != version {
		return errs.InvalidField("modules_path", "the modules in %s are for the kernel %s, and kernel_path is the kernel %s", dir, made, version).
			WithHint("give the modules of the kernel %s", version)
	}
	return nil
}
