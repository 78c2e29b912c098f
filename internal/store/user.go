package store

import (
	"context"
	"fmt"

	"github.com/hatchvm/hatch/internal/access"
)

var _ access.Store = (*accessStore)(nil)

// InsertUser implements [access.Store].
func (s *accessStore) InsertUser(ctx context.Context, u access.User) error {
	err := s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, "INSERT INTO accounts (id, name, created_at) VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
			u.ID, u.Name, micros(u.CreatedAt))
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot store the user: %w", err)
	}
	return nil
}
