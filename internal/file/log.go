package file

import (
	"context"
	"io"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
)

// cloudInitLogs are cloud-init's logs, in order of preference: the output of it and
// of the user data, then its own log, which exists earlier, and also when its
// configuration sends the output elsewhere.
var cloudInitLogs = []string{"/var/log/cloud-init-output.log", "/var/log/cloud-init.log"}

// CloudInitLog writes the last lines of cloud-init's output (all when lines < 0) to
// w and, with follow, what is appended until ctx is done. It wakes no VM.
// Errors: errs.NotFound with code cloud_init_log_not_found.
func (s *Service) CloudInitLog(ctx context.Context, scope access.Scope, vmID string, lines int, follow bool, w io.Writer) error {
	guest, release, err := s.guests.Open(ctx, scope, vmID, NoWake)
	if err != nil {
		return err
	}
	defer release()
	for _, path := range cloudInitLogs {
		err = guest.TailFile(ctx, path, lines, follow, w)
		if !errs.HasCode(err, "file_not_found") {
			return err
		}
	}
	return errs.New(errs.NotFound, "cloud_init_log_not_found", "there is no log of cloud-init in the guest: its image has no cloud-init, or it has not started yet").
		WithHint("the VM's condition cloud_init_done says which").WithCause(err)
}
