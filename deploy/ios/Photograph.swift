// Read a photograph for EdgeSkClassifier or CoreMLClassifier. Not compiled here; see README.md.
import Foundation
import ImageIO

/// No picture that this system decodes (JPEG, PNG, HEIC, WebP and more).
struct UnreadablePhotograph: Error {
  let photo: URL
}

/// A photograph, upright: a `CGImage`, and `UIImage.cgImage` too, lies as the sensor was and forgets the EXIF orientation.
func upright(_ photo: URL) throws -> CGImage {
  // A "thumbnail" without a largest size is the whole picture, turned.
  let options: [CFString: Any] = [
    kCGImageSourceCreateThumbnailFromImageAlways: true,
    kCGImageSourceCreateThumbnailWithTransform: true,
  ]
  guard
    let source = CGImageSourceCreateWithURL(photo as CFURL, nil),
    let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary)
  else { throw UnreadablePhotograph(photo: photo) }
  return image
}
