// Classify an image with an fp32 or int8 .pte that deploy/export.py wrote. Not compiled here; see README.md.
import CoreGraphics
import ExecuTorch
import Foundation

final class EdgeSkClassifier {
  private let module: Module
  private let height: Int
  private let width: Int
  private let shorterSide: Int  // of the resized image, whose centre is cut out
  private let hasSoftmax: Bool

  init(path: String) throws {
    module = Module(filePath: path)
    try module.load("forward")
    let shape = try module.methodMetadata("forward").inputTensorMetadata[0]!.shape
    (height, width) = (shape[2], shape[3])
    let cropPct: [Value] = try module.execute("crop_pct")
    shorterSide = Int(Double(min(shape[2], shape[3])) / cropPct[0].double)
    let softmax: [Value] = try module.execute("softmax")
    hasSoftmax = softmax[0].boolean
  }

  /// Class indices with probabilities, the likeliest first; names are in the record beside the file.
  func classify(_ image: CGImage) throws -> [(index: Int, probability: Float)] {
    let input = Tensor<Float>(pixels(of: image), shape: [1, 3, height, width])
    let output: [Float] = try Tensor<Float>(module.forward(input)).scalars()
    let shares = hasSoftmax ? output : softmax(output)
    return shares.enumerated().map { ($0.offset, $0.element) }.sorted { $0.1 > $1.1 }
  }

  private func softmax(_ logits: [Float]) -> [Float] {
    let largest = logits.max() ?? 0
    let shares = logits.map { exp($0 - largest) }
    let sum = shares.reduce(0, +)
    return shares.map { $0 / sum }
  }

  /// NCHW, RGB, [0, 1]: the shorter side resized, the centre cut out; normalisation is inside the file.
  private func pixels(of image: CGImage) -> [Float] {
    let context = CGContext(
      data: nil, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
      space: CGColorSpaceCreateDeviceRGB(), bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
    context.interpolationQuality = .high
    let shorter = min(image.width, image.height)
    let (wide, high) = (shorterSide * image.width / shorter, shorterSide * image.height / shorter)
    context.draw(image, in: CGRect(x: (width - wide) / 2, y: (height - high) / 2, width: wide, height: high))
    let bytes = context.data!.assumingMemoryBound(to: UInt8.self)
    return (0..<3).flatMap { channel in (0..<(width * height)).map { Float(bytes[4 * $0 + channel]) / 255 } }
  }
}
