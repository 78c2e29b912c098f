package file

import (
	"context"
	"io"

	"github.com/hatchvm/hatch/internal/errs"
)

// cloudInitLogs are where cloud-init writes, the better first: what it and the
// user data printed, then its own account, which is all there is of a run that
// has only begun or is set up to print elsewhere.
var cloudInitLogs = []string{"/var/log/cloud-init-output.log", "/var/log/cloud-init.log"}

// CloudInitLog writes the last lines of what cloud-init printed (all when lines
// < 0) to w and, with follow, what comes until ctx is done. To look at a log
// wakes no VM.
// Errors: errs.NotFound with code cloud_init_log_not_found.
func (s *Service) CloudInitLog(ctx context.Context, owner, vmID string, lines int, follow bool, w io.Writer) error {
	guest, err := s.guests.AwakeFileGuest(ctx, owner, vmID)
	if err != nil {
		return err
	}
	for _, path := range cloudInitLogs {
		err = guest.TailFile(ctx, path, lines, follow, w)
		if !errs.HasCode(err, "file_not_found") {
			return err
		}
	}
	return errs.New(errs.NotFound, "cloud_init_log_not_found", "there is no log of cloud-init in the guest: its image has none, or it has not begun yet").
		WithHint("the VM's condition cloud_init_done says which").WithCause(err)
}
