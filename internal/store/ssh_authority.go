package store

import (
	"context"
	"fmt"
)

// SSHAuthority implements [sshca.Store].
func (s *database) SSHAuthority(ctx context.Context, fresh []byte) (seed []byte, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if _, err := tx.exec(ctx, "INSERT INTO ssh_authority (id, seed) VALUES (1, ?) ON CONFLICT (id) DO NOTHING", s.keys.Seal(placeOfSSHAuthority(), fresh)); err != nil {
			return fmt.Errorf("cannot store the key of the SSH certificate authority: %w", err)
		}
		if _, err := tx.get(ctx, &seed, "SELECT seed FROM ssh_authority WHERE id = 1"); err != nil {
			return fmt.Errorf("cannot read the key of the SSH certificate authority: %w", err)
		}
		seed, err = s.keys.Open(placeOfSSHAuthority(), seed)
		return err
	})
	return seed, err
}
