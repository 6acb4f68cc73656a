package image

// Divided is a client for which sizes, from which files and layers are large, are a part of what they are, so that tests are
// about small ones.
func (c Client) Divided(by int64) Client {
	c.divide = by
	return c
}
