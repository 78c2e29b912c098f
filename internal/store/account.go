package store

import (
	"context"
	"fmt"

	"github.com/hatchvm/hatch/internal/access"
)

var _ access.Store = (*accessStore)(nil)

// InsertAccount implements [access.Store].
func (s *accessStore) InsertAccount(ctx context.Context, a access.Account) error {
	err := s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, "INSERT INTO accounts (id, name, created_at) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
			a.ID, a.Name, micros(a.CreatedAt))
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot store the account: %w", err)
	}
	return nil
}
