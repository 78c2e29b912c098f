// Package initramfs builds the initramfs that boots every image: hatch-agent as /init,
// and the kernel modules that the guest needs before its root is mounted.
//
// It reads module directories, not kernels or root file systems. Module files are
// untrusted: their sizes are limited. Start at [Build].
package initramfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
)

// Source lists the contents of an archive.
type Source struct {
	AgentPath    string // the static hatch-agent
	ModulesDir   string // like /lib/modules/VERSION; "" if all drivers are built in
	RootfsFormat string // ext4, squashfs, erofs, xfs, btrfs
	Overlay      bool   // the root is an overlay, not the VM's own copy
}

// maxAgent limits the agent, in bytes.
const maxAgent = 64 << 20

// moduleList is the path at which internal/agent/boot reads the list of modules.
const moduleList = "etc/modules-order"

// Build writes the archive. It does not compress it: decompressing takes an emulated
// guest longer than reading. The same source gives the same bytes. A driver without a
// module is no error: a kernel may have it built in without listing it.
func Build(w io.Writer, s Source) error {
	agent, err := readAgent(s.AgentPath)
	if err != nil {
		return err
	}
	var modules []loaded
	if s.ModulesDir != "" {
		index, err := OpenModules(s.ModulesDir)
		if err != nil {
			return err
		}
		defer func() { _ = index.Close() }()
		if modules, err = index.resolve(Required(s.RootfsFormat, s.Overlay)); err != nil {
			return err
		}
	}
	a := archive{w: cpio.NewWriter(w)}
	a.addAll(agent, modules)
	if err := errors.Join(a.err, a.w.Close()); err != nil {
		return fmt.Errorf("cannot write the initramfs: %w", err)
	}
	return nil
}

func readAgent(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("cannot read the agent: %w", err)
	}
	defer func() { _ = f.Close() }()
	agent, err := io.ReadAll(io.LimitReader(f, maxAgent+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the agent: %w", err)
	}
	if len(agent) > maxAgent {
		return nil, fmt.Errorf("the agent is larger than %d MiB", maxAgent>>20)
	}
	return agent, nil
}

// archive writes a cpio archive, and stores the first error.
type archive struct {
	w     *cpio.Writer
	inode int64
	err   error
}

func (a *archive) addAll(agent []byte, modules []loaded) {
	for _, dir := range []string{"dev", "proc", "sys", "etc", "lib", "lib/modules"} {
		a.add(dir, cpio.TypeDir|0o755, nil)
	}
	// A regular file until devtmpfs is mounted: a Go program that is started without
	// standard input, because the guest has no console, must be able to open it.
	a.add("dev/null", cpio.TypeReg|0o666, nil)
	var list strings.Builder
	for _, m := range modules {
		name := path.Join("lib/modules", m.name+".ko")
		a.add(name, cpio.TypeReg|0o644, m.content)
		fmt.Fprintf(&list, "/%s\n", name)
	}
	if len(modules) > 0 {
		a.add(moduleList, cpio.TypeReg|0o644, []byte(list.String()))
	}
	a.add("init", cpio.TypeReg|0o755, agent)
}

func (a *archive) add(name string, mode cpio.FileMode, content []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	a.err = a.w.WriteHeader(&cpio.Header{
		Name: name, Mode: mode, Size: int64(len(content)), Links: 1, Inode: a.inode, ModTime: time.Unix(1, 0),
	})
	if a.err == nil && len(content) > 0 {
		_, a.err = a.w.Write(content)
	}
}
