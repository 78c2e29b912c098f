package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// askTimeout bounds the question to the service manager: a shutdown must not wait
// for one that hangs.
const askTimeout = 5 * time.Second

// managerStops reports whether systemd is stopping the host. It is false on a host
// that another init has started: there is no directory of systemd, or no systemctl.
func managerStops(ctx context.Context, systemdDir, systemctl string) (bool, error) {
	if _, err := os.Stat(systemdDir); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// To root systemd answers on its own socket, even when D-Bus has ended.
	ask := exec.CommandContext(ctx, systemctl, "is-system-running")
	ask.WaitDelay = time.Second
	out, err := ask.Output()
	switch state := strings.TrimSpace(string(out)); {
	case errors.Is(err, exec.ErrNotFound):
		return false, nil
	case state == "": // its exit status is an error in every state but one
		return false, fmt.Errorf("cannot ask systemd for the state of the host: %w", err)
	default:
		return state == "stopping", nil
	}
}
