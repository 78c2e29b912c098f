package rootfs

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image/kernel"
)

// kernelFacts is what the kernel's file contains.
type kernelFacts struct {
	version string
	witness kernel.Witness
}

// readKernel recognises the kernel and decompresses it.
func (i *Inspector) readKernel(src source, f *os.File, path string) (kernelFacts, error) {
	st, err := f.Stat()
	if err != nil {
		return kernelFacts{}, cannotRead("kernel_path", path, err)
	}
	k, err := kernel.Read(f, st.Size())
	if errors.Is(err, kernel.ErrNoKernel) {
		return kernelFacts{}, errs.InvalidField("kernel_path", "%s is %v", path, err).WithHint("%s", kernel.Hint(f))
	}
	if err != nil {
		return kernelFacts{}, errs.InvalidField("kernel_path", "%s cannot be used: %v", path, err)
	}
	if i.config.NeedsPVH && k.Format == kernel.ELF && !k.PVH() {
		return kernelFacts{}, errs.InvalidField("kernel_path", "%s is an uncompressed kernel without the PVH entry point, by which QEMU starts such kernels", path).
			WithHint("give the bzImage of the same kernel, or one that is built with CONFIG_PVH=y")
	}
	vmlinux, err := k.Vmlinux()
	if err != nil {
		return kernelFacts{}, errs.InvalidField("kernel_path", "%s cannot be used: %v", path, err).
			WithHint("copy the file again from its source, or give the uncompressed vmlinux of the same kernel")
	}
	facts := kernelFacts{version: k.Version, witness: kernel.Witness{Vmlinux: vmlinux}}
	facts.witness.Config = configOf(src, vmlinux, path, k.Version)
	return facts, nil
}

// configOf returns the configuration inside the kernel, else the one beside it with
// the name that distributions use; nil when there is none or it cannot be read.
func configOf(src source, vmlinux []byte, path, version string) kernel.Config {
	if c, ok, err := kernel.EmbeddedConfig(vmlinux); err == nil && ok {
		return c
	}
	if version == "" {
		return nil
	}
	f, err := src.file("kernel_path", filepath.Join(filepath.Dir(path), "config-"+version))
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	c, err := kernel.ParseConfig(f)
	if err != nil {
		return nil
	}
	return c
}
