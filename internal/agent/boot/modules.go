package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/logkey"
)

// moduleList lists the initramfs's modules, one path per line, each after those that
// it depends on. internal/guest/initramfs writes it.
const moduleList = "etc/modules-order"

// loadModules loads the modules listed below root, and removes their files to free
// memory. It logs errors: the guest may not need the module.
func loadModules(log *slog.Logger, root string) {
	list, err := os.ReadFile(filepath.Join(root, moduleList))
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			log.Error("cannot read the list of modules", logkey.Error, err)
		}
		return
	}
	for name := range strings.SplitSeq(strings.TrimSpace(string(list)), "\n") {
		path := filepath.Join(root, name)
		if err := loadModule(path); err != nil {
			log.Error("cannot load a module", "module", filepath.Base(name), logkey.Error, err)
		}
		_ = os.Remove(path)
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the kernel refuses the module: %w", err)
	}
	return nil
}
