// Classify an image with a .pte that deploy/export.py wrote. Not compiled here; see README.md.
import CoreGraphics
import ExecuTorch
import Foundation

final class EdgeSkClassifier {
  private let module: Module
  private let height: Int
  private let width: Int

  init(path: String) throws {
    module = Module(filePath: path)
    try module.load("forward")
    let shape = try module.methodMetadata("forward").inputTensorMetadata[0]!.shape
    (height, width) = (shape[2], shape[3])
  }

  /// Class indices with probabilities, the likeliest first; names are in the record beside the file.
  func classify(_ image: CGImage) throws -> [(index: Int, probability: Float)] {
    let input = Tensor<Float>(pixels(of: image), shape: [1, 3, height, width])
    let logits: [Float] = try Tensor<Float>(module.forward(input)).scalars()
    let largest = logits.max() ?? 0
    let shares = logits.map { exp($0 - largest) }
    let sum = shares.reduce(0, +)
    return shares.enumerated().map { ($0.offset, $0.element / sum) }.sorted { $0.1 > $1.1 }
  }

  /// NCHW, RGB, [0, 1], the centre of the image; normalisation is inside the file.
  private func pixels(of image: CGImage) -> [Float] {
    var bytes = [UInt8](repeating: 0, count: 4 * width * height)
    let context = CGContext(
      data: &bytes, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
      space: CGColorSpaceCreateDeviceRGB(), bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
    context.interpolationQuality = .high
    let side = min(image.width, image.height)
    let square = CGRect(x: (image.width - side) / 2, y: (image.height - side) / 2, width: side, height: side)
    context.draw(image.cropping(to: square)!, in: CGRect(x: 0, y: 0, width: width, height: height))
    return (0..<3).flatMap { channel in (0..<(width * height)).map { Float(bytes[4 * $0 + channel]) / 255 } }
  }
}
