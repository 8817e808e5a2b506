// Classify a photograph with an fp32 or int8 .pte that deploy/export.py wrote. Not compiled here; see README.md.
import CoreGraphics
import ExecuTorch
import Foundation

final class EdgeSkClassifier {
  private let module: Module
  private let height: Int
  private let width: Int
  private let resizedWidth: Int  // what the resized image covers; its centre is cut out
  private let resizedHeight: Int
  private let hasSoftmax: Bool
  private let labels: [Substring]  // empty: unknown

  /// The file is not one of deploy/export.py's: no image input, or no `crop_pct`, `softmax` or `labels`.
  struct UnknownFile: Error {
    let path: String
  }

  init(path: String) throws {
    module = Module(filePath: path)
    try module.load("forward")
    let crop: [Value] = try module.execute("crop_pct")
    let softmax: [Value] = try module.execute("softmax")
    let names: [Value] = try module.execute("labels")
    guard
      let shape = try module.methodMetadata("forward").inputTensorMetadata[0]?.shape, shape.count == 4,
      let cropPct = crop.first?.double, let inside = softmax.first?.boolean, let text = names.first?.string
    else { throw UnknownFile(path: path) }
    (height, width, hasSoftmax) = (shape[2], shape[3], inside)
    (resizedWidth, resizedHeight) = (Int(Double(width) / cropPct), Int(Double(height) / cropPct))
    labels = text.isEmpty ? [] : text.split(separator: "\n", omittingEmptySubsequences: false)
  }

  /// Labels with probabilities of a photograph, the likeliest first; Photograph.swift turns it upright.
  func classify(_ photo: URL) throws -> [(label: String, probability: Float)] {
    try classify(upright(photo))
  }

  /// The same for an upright image.
  func classify(_ image: CGImage) throws -> [(label: String, probability: Float)] {
    let input = Tensor<Float>(pixels(of: image), shape: [1, 3, height, width])
    let output: [Float] = try Tensor<Float>(module.forward(input)).scalars()
    let shares = hasSoftmax ? output : softmax(output)
    return shares.enumerated().map { (name(of: $0.offset), $0.element) }.sorted { $0.1 > $1.1 }
  }

  private func name(of index: Int) -> String {
    index < labels.count ? String(labels[index]) : "class \(index)"
  }

  private func softmax(_ logits: [Float]) -> [Float] {
    let largest = logits.max() ?? 0
    let shares = logits.map { exp($0 - largest) }
    let sum = shares.reduce(0, +)
    return shares.map { $0 / sum }
  }

  /// NCHW, RGB, [0, 1]: resized in proportion, the centre cut out; normalisation is inside the file.
  private func pixels(of image: CGImage) -> [Float] {
    let context = CGContext(
      data: nil, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
      space: CGColorSpaceCreateDeviceRGB(), bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
    context.interpolationQuality = .high
    let wide = max(resizedWidth, resizedHeight * image.width / image.height)
    let high = max(resizedHeight, resizedWidth * image.height / image.width)
    context.draw(image, in: CGRect(x: (width - wide) / 2, y: (height - high) / 2, width: wide, height: high))
    let bytes = context.data!.assumingMemoryBound(to: UInt8.self)
    return (0..<3).flatMap { channel in (0..<(width * height)).map { Float(bytes[4 * $0 + channel]) / 255 } }
  }
}
