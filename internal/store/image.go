package store

import (
	"cmp"
	"context"
	"fmt"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/quota"
)

// imageRow is an image as stored in its table.
type imageRow struct {
	ID            string `db:"id"`
	OwnerID       string `db:"owner_id"`
	Name          string `db:"name"`
	Kernel        string `db:"kernel"`
	KernelVersion string `db:"kernel_version"`
	ModulesPath   string `db:"modules_path"`
	Rootfs        string `db:"rootfs"`
	RootfsFormat  string `db:"rootfs_format"`
	DiskMode      string `db:"disk_mode"`
	BootArgs      string `db:"boot_args"`
	CloudInit     bool   `db:"cloud_init"`
	CreatedAt     int64  `db:"created_at"`
	Visibility    string `db:"visibility"`
}

const (
	imageColumns = "id, owner_id, name, kernel, kernel_version, modules_path, rootfs, rootfs_format, disk_mode, boot_args, cloud_init, created_at, visibility"
	selectImage  = "SELECT " + imageColumns + " FROM images"

	countImageUsers = "SELECT (SELECT COUNT(*) FROM vms WHERE image_id = ? AND owner_id <> ?)" +
		" + (SELECT COUNT(*) FROM snapshots WHERE image_id = ? AND owner_id <> ?)"
	insertImage = "INSERT INTO images (" + imageColumns + `) VALUES (:id, :owner_id, :name, :kernel, :kernel_version,
		:modules_path, :rootfs, :rootfs_format, :disk_mode, :boot_args, :cloud_init, :created_at, :visibility)`
	replaceImage = insertImage + ` ON CONFLICT (id) DO UPDATE SET
		name = excluded.name, kernel = excluded.kernel, kernel_version = excluded.kernel_version,
		modules_path = excluded.modules_path, rootfs = excluded.rootfs, rootfs_format = excluded.rootfs_format,
		disk_mode = excluded.disk_mode, boot_args = excluded.boot_args, cloud_init = excluded.cloud_init,
		created_at = excluded.created_at
		WHERE images.owner_id = excluded.owner_id`
)

var _ image.Store = (*imageStore)(nil)

// InsertImage implements [image.Store].
func (s *imageStore) InsertImage(ctx context.Context, i image.Image) error {
	_, err := s.storeImage(ctx, insertImage, i)
	return err
}

// UpsertImage implements [image.Store]. Existing VMs are not changed.
func (s *imageStore) UpsertImage(ctx context.Context, i image.Image) error {
	n, err := s.storeImage(ctx, replaceImage, i)
	if err == nil && n == 0 {
		return imageExists(i.ID)
	}
	return err
}

func (s *imageStore) storeImage(ctx context.Context, statement string, i image.Image) (affected int64, err error) {
	row, err := imageRowOf(i)
	if err != nil {
		return 0, err
	}
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, i.OwnerID, i.ID); err != nil {
			return err
		}
		if err := checkImageQuota(ctx, tx, i); err != nil {
			return err
		}
		res, err := tx.NamedExecContext(ctx, statement, row)
		if err != nil {
			return err
		}
		affected, err = res.RowsAffected()
		return err
	})
	switch {
	case errs.HasCode(err, quota.Code):
		return 0, err
	case violated(err) == "images_id":
		return 0, imageExists(i.ID)
	case violated(err) == "images_owner_id_name":
		return 0, errs.New(errs.Conflict, "name_taken", "name: another image is called %q", i.Name).
			WithField("name").WithHint("give another name, or delete that image").WithCause(err)
	case err != nil:
		return 0, fmt.Errorf("cannot store the image: %w", err)
	}
	return affected, nil
}

// checkImageQuota returns an error if an image exceeds the quota of its owner. One that
// it replaces is not counted.
func checkImageQuota(ctx context.Context, t *tx, i image.Image) error {
	asked := imageMiB(i)
	var row imageRow
	replaces, err := t.get(ctx, &row, selectImage+" WHERE id = ? AND owner_id = ?", i.ID, i.OwnerID)
	if err == nil && replaces {
		var before image.Image
		before, err = row.image(nil)
		asked -= imageMiB(before)
	}
	if err != nil {
		return fmt.Errorf("cannot read the image: %w", err)
	}
	return t.checkQuota(ctx, i.OwnerID, quota.Amounts{quota.ImageMiB: asked})
}

func imageExists(id string) error {
	return errs.New(errs.Conflict, "image_exists", "id: image %s already exists", id).
		WithField("id").WithHint("give another id, or delete that image")
}

// Image implements [image.Store].
func (s *imageStore) Image(ctx context.Context, scope access.Scope, id string) (image.Image, error) {
	if !storable(id) {
		return image.Image{}, noImage(id)
	}
	where, args := sharedImages.named(scope, id)
	return oneImage(ctx, s.reads, id, where, args...)
}

func oneImage(ctx context.Context, q querier, id, where string, args ...any) (image.Image, error) {
	var row imageRow
	found, err := get(ctx, q, &row, selectImage+" WHERE "+where, args...)
	if err != nil {
		return image.Image{}, fmt.Errorf("cannot read the image: %w", err)
	}
	if !found {
		return image.Image{}, noImage(id)
	}
	with, err := sharedImages.with(ctx, q, row.ID)
	if err != nil {
		return image.Image{}, err
	}
	return row.image(with[row.ID])
}

// UpdateImage implements [image.Store].
func (s *imageStore) UpdateImage(ctx context.Context, id string, change func(*image.Image) error) (i image.Image, err error) {
	err = s.write(ctx, func(tx *tx) error {
		if _, err := tx.exec(ctx, "UPDATE images SET name = name WHERE id = ?", id); err != nil {
			return fmt.Errorf("cannot lock the image: %w", err)
		}
		if i, err = oneImage(ctx, tx, id, "id = ?", id); err != nil {
			return err
		}
		if err := change(&i); err != nil {
			return err
		}
		if _, err := tx.exec(ctx, "UPDATE images SET visibility = ? WHERE id = ?", string(i.Sharing.Visibility), id); err != nil {
			return fmt.Errorf("cannot store the image: %w", err)
		}
		return sharedImages.share(ctx, tx, id, i.Sharing.With)
	})
	return i, err
}

// Images implements [image.Store].
func (s *imageStore) Images(ctx context.Context, scope access.Scope) ([]image.Image, error) {
	var rows []imageRow
	visible, args := sharedImages.visible(scope)
	if err := selectAll(ctx, s.reads, &rows, selectImage+" WHERE "+visible+" ORDER BY created_at DESC, id DESC", args...); err != nil {
		return nil, fmt.Errorf("cannot list images: %w", err)
	}
	with, err := sharedImages.with(ctx, s.reads, "")
	if err != nil {
		return nil, err
	}
	images := make([]image.Image, len(rows))
	for i, row := range rows {
		var err error
		if images[i], err = row.image(with[row.ID]); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// DeleteImage implements [image.Store]. An image that VMs or snapshots use
// cannot be deleted: errs.Conflict with code image_in_use.
func (s *imageStore) DeleteImage(ctx context.Context, scope access.Scope, id string) error {
	owned, args := inScope(scope)
	return s.write(ctx, func(tx *tx) error {
		n, err := tx.exec(ctx, "DELETE FROM images WHERE id = ? AND "+owned, append([]any{id}, args...)...)
		if referenceFailed(err) {
			return errs.New(errs.Conflict, "image_in_use", "cannot delete image %s: VMs or snapshots were made from it", id).
				WithHint("delete those VMs and snapshots first").WithCause(err)
		}
		if err != nil {
			return fmt.Errorf("cannot delete the image: %w", err)
		}
		if n == 0 {
			return noImage(id)
		}
		return nil
	})
}

// ImageOwner implements [warm.Images]. Images of hatchd are the first admin's there.
func (s *imageStore) ImageOwner(ctx context.Context, id string) (owner string, err error) {
	found, err := get(ctx, s.reads, &owner, "SELECT owner_id FROM images WHERE id = ?", id)
	if err == nil && !found {
		err = noImage(id)
	}
	if owner == access.SystemID {
		owner = access.AdminID
	}
	return owner, err
}

// ImageUsers implements [image.Store].
func (s *imageStore) ImageUsers(ctx context.Context, id string) (users int, err error) {
	if !storable(id) {
		return 0, nil
	}
	if _, err = get(ctx, s.reads, &users, countImageUsers, id, access.SystemID, id, access.SystemID); err != nil {
		return 0, fmt.Errorf("cannot count the VMs and snapshots of an image: %w", err)
	}
	return users, nil
}

func imageRowOf(i image.Image) (imageRow, error) {
	kernel, err := toJSON(i.Kernel)
	if err != nil {
		return imageRow{}, err
	}
	rootfs, err := toJSON(i.Rootfs)
	return imageRow{
		ID: i.ID, OwnerID: i.OwnerID, Name: i.Name, Kernel: kernel, KernelVersion: printable(i.KernelVersion),
		ModulesPath: i.ModulesPath, Rootfs: rootfs, RootfsFormat: i.RootfsFormat, DiskMode: string(i.DiskMode),
		BootArgs: i.BootArgs, CloudInit: i.CloudInit, CreatedAt: micros(i.CreatedAt),
		Visibility: string(cmp.Or(i.Sharing.Visibility, access.Private)),
	}, err
}

func (r imageRow) image(with []string) (image.Image, error) {
	i := image.Image{
		ID: r.ID, OwnerID: r.OwnerID, Name: r.Name, KernelVersion: r.KernelVersion, ModulesPath: r.ModulesPath,
		RootfsFormat: r.RootfsFormat, DiskMode: image.DiskMode(r.DiskMode), BootArgs: r.BootArgs,
		CloudInit: r.CloudInit, CreatedAt: fromMicros(r.CreatedAt),
		Sharing: access.Sharing{Visibility: access.Visibility(r.Visibility), With: with},
	}
	if err := fromJSON(r.Kernel, &i.Kernel); err != nil {
		return image.Image{}, fmt.Errorf("cannot read image %s: %w", r.ID, err)
	}
	if err := fromJSON(r.Rootfs, &i.Rootfs); err != nil {
		return image.Image{}, fmt.Errorf("cannot read image %s: %w", r.ID, err)
	}
	return i, nil
}

func noImage(id string) error {
	return errs.New(errs.NotFound, "image_not_found", "there is no image %q", id).
		WithHint("GET /images lists them; hatch image build makes the default one")
}
